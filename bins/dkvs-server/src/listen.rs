//! Binding a server's port, or saying why not and what to do.

use std::io::ErrorKind;
use std::net::SocketAddr;

use anyhow::{Context, bail, ensure};
use dkvs_core::servers::ServerName;
use dkvs_net::{Port, resolve};

/// Binds both lanes. `remedy` says how to choose another port, after "or".
pub(crate) async fn bind(address: SocketAddr, insecure: bool, remedy: &str) -> anyhow::Result<Port> {
    if !address.ip().to_canonical().is_loopback() {
        ensure!(
            insecure,
            "{address} is reachable from beyond this machine, and nothing is encrypted or authenticated yet: \
             whoever reaches it can read and write everything. If all who can are trusted, \
             say so with --insecure, or with insecure = true in the configuration file"
        );
        tracing::warn!(
            %address,
            "listening beyond loopback without encryption or authentication: \
             whoever reaches this address can read and write everything"
        );
    }
    match Port::bind(address).await {
        Ok(port) => Ok(port),
        // The guards are the errors a user can do something about.
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            bail!("{address} is in use: stop the program that has it, or {remedy}")
        }
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => bail!(
            "cannot listen on {address}: this machine has no such address. If others reach it under that address \
             through a translation, choose one that it has with --listen, or with listen in the configuration file"
        ),
        Err(error) => Err(error).with_context(|| format!("cannot listen on {address}")),
    }
}

/// The address of a `listen` setting: one of an interface, all of them (`0.0.0.0`, `[::]`), or a host name's.
pub(crate) async fn address(listen: &str) -> anyhow::Result<SocketAddr> {
    let address = match listen.parse::<SocketAddr>() {
        Ok(address) => address,
        Err(_) => {
            let name: ServerName = listen.parse().with_context(|| format!("listen is {listen:?}"))?;
            resolve_name(&name).await?
        }
    };
    ensure!(address.port() != 0, "listen is {listen:?}; its port must be from 1 to 65535");
    Ok(address)
}

/// Where a server receives.
pub(crate) async fn resolve_name(name: &ServerName) -> anyhow::Result<SocketAddr> {
    let found = resolve(&name.host().to_string(), name.port()).await;
    found.with_context(|| format!("cannot find the address of {name}"))
}
