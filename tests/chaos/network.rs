//! The network inside: a bridge with the clients' addresses, and a namespace for each server.
//!
//! Faults are rules in the servers' namespaces, replaced as one transaction. A datagram lost at the sender's filter
//! fails its `send` with EPERM, one lost at the receiver's is lost in silence; both happen.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

use crate::sandbox::{NoSandbox, command};

/// Servers of the ring.
pub(crate) const SERVERS: usize = 5;
/// Clients, each with an address.
pub(crate) const CLIENTS: usize = 5;

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// A server's number, from 0.
    Server(usize),
    /// A client's number, from 0.
    Client(usize),
}

impl Place {
    /// All places.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..SERVERS).map(Self::Server).chain((0..CLIENTS).map(Self::Client))
    }

    /// Its address.
    pub(crate) fn ip(self) -> IpAddr {
        let host = match self {
            Self::Server(number) => 1 + number,
            Self::Client(number) => 101 + number,
        };
        Ipv4Addr::new(10, 77, 0, u8::try_from(host).unwrap()).into()
    }
}

/// What a server's filter does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rules {
    /// Nothing arrives from these.
    pub(crate) not_from: Vec<Place>,
    /// Nothing leaves for these; sending fails.
    pub(crate) not_to: Vec<Place>,
    /// Packets of a hundred that are lost on arrival.
    pub(crate) lost_in: u8,
    /// Packets of a hundred that cannot be sent.
    pub(crate) lost_out: u8,
    /// Packets of a hundred that leave twice.
    pub(crate) twice: u8,
    /// Most that leaves, in kilobits a second; the rest queues, and is dropped when the queue is full.
    pub(crate) kbit: Option<u32>,
}

impl Rules {
    fn nft(&self) -> String {
        let mut text = String::from("flush ruleset\ntable ip chaos {\n");
        let mut chain = |name: &str, hook: &str, rules: &[String]| {
            let _ = writeln!(text, "chain {name} {{\ntype filter hook {hook} priority 0; policy accept;");
            rules.iter().for_each(|rule| text.extend([rule.as_str(), "\n"]));
            text.push_str("}\n");
        };
        let lost = |interface: &str, percent: u8| {
            (percent > 0).then(|| format!("{interface} \"eth0\" numgen random mod 100 < {percent} drop"))
        };
        let cut = |interface: &str, field: &str, places: &[Place]| {
            let ips: Vec<String> = places.iter().map(|place| place.ip().to_string()).collect();
            let set = ips.join(", ");
            (!places.is_empty()).then(|| format!("{interface} \"eth0\" ip {field} {{ {set} }} drop"))
        };
        let of = |rules: [Option<String>; 2]| rules.into_iter().flatten().collect::<Vec<_>>();
        let incoming = of([cut("iifname", "saddr", &self.not_from), lost("iifname", self.lost_in)]);
        let outgoing = of([cut("oifname", "daddr", &self.not_to), lost("oifname", self.lost_out)]);
        let percent = self.twice;
        let twice = (percent > 0).then(|| {
            format!("oifname \"eth0\" numgen random mod 100 < {percent} dup to ip daddr device \"eth0\"")
        });
        chain("incoming", "input", &incoming);
        chain("outgoing", "output", &outgoing);
        chain("leaving", "postrouting", &of([twice, None]));
        text.push_str("}\n");
        text
    }
}

/// The file that holds a server's namespace open.
pub(crate) fn namespace(server: usize) -> String {
    format!("/run/netns/server-{}", 1 + server)
}

fn within(server: usize, arguments: &[&str], input: &str) -> Result<(), NoSandbox> {
    // Not `ip netns exec`: that would make a mount namespace, which keeps our mounts alive.
    let enter = format!("--net={}", namespace(server));
    command("nsenter", &[&[enter.as_str()], arguments].concat(), input)
}

/// Makes it all, and tries every kind of rule once.
pub(crate) fn set_up() -> Result<(), NoSandbox> {
    let ip = |arguments: &str| command("ip", &arguments.split(' ').collect::<Vec<_>>(), "");
    // Names of namespaces are files below; ours are nobody else's business.
    command("mount", &["-t", "tmpfs", "tmpfs", "/run"], "")?;
    ip("link set lo up")?;
    ip("link add hub type bridge")?;
    for client in 0..CLIENTS {
        ip(&format!("addr add {}/24 dev hub", Place::Client(client).ip()))?;
    }
    ip("link set hub up")?;
    for server in 0..SERVERS {
        let number = 1 + server;
        ip(&format!("netns add server-{number}"))?;
        ip(&format!("link add port-{number} type veth peer name eth0 netns server-{number}"))?;
        ip(&format!("link set port-{number} master hub up"))?;
        let ip_within = |arguments: &str| {
            within(server, &["ip"].into_iter().chain(arguments.split(' ')).collect::<Vec<_>>(), "")
        };
        ip_within(&format!("addr add {}/24 dev eth0", Place::Server(server).ip()))?;
        ip_within("link set lo up")?;
        ip_within("link set eth0 up")?;
        let others = vec![Place::Client(0)];
        let rules = Rules {
            not_from: others.clone(),
            not_to: others,
            lost_in: 1,
            lost_out: 1,
            twice: 1,
            kbit: Some(1_000),
        };
        apply(server, &Rules::default(), &rules)?;
        apply(server, &rules, &Rules::default())?;
    }
    Ok(())
}

/// Replaces a server's rules.
pub(crate) fn apply(server: usize, before: &Rules, after: &Rules) -> Result<(), NoSandbox> {
    within(server, &["nft", "-f", "-"], &after.nft())?;
    match (before.kbit, after.kbit) {
        (None, None) => Ok(()),
        (Some(_), None) => within(server, &["tc", "qdisc", "del", "dev", "eth0", "root"], ""),
        (_, Some(kbit)) => {
            let shape = format!("qdisc replace dev eth0 root tbf rate {kbit}kbit burst 4kb latency 400ms");
            within(server, &["tc"].into_iter().chain(shape.split(' ')).collect::<Vec<_>>(), "")
        }
    }
}
