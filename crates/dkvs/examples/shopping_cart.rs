//! The shopping cart of the Dynamo paper (DeCandia et al. 2007, §2.2): an item added is never lost, even when two
//! devices add to the cart at the same time.
//!
//! ```text
//! cargo run --release --bin dkvs-server                  # in one terminal
//! cargo run -p dkvs --example shopping_cart              # in another
//! ```

use std::collections::BTreeSet;

use dkvs::{Client, Error};

/// A cart is a set of items, stored as lines. Concurrent carts are merged by union.
type Cart = BTreeSet<String>;

fn encode(cart: &Cart) -> String {
    cart.iter().cloned().collect::<Vec<_>>().join("\n")
}

/// Reads the cart, adds an item to all that is in it, and writes it back with the context of the read: what was read is
/// replaced, and what somebody else wrote meanwhile stays as a sibling for the next read to merge.
async fn add(client: &Client, key: &str, item: &str) -> Result<Cart, Error> {
    let got = client.get(key.to_owned()).siblings().await?;
    let carts = got.siblings().iter().flatten();
    let mut cart: Cart = carts
        .flat_map(|cart| String::from_utf8_lossy(cart).lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    cart.insert(item.to_owned());
    client.put(key.to_owned(), encode(&cart)).context(got.context()).await?;
    Ok(cart)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let server = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:1234".into());
    let (phone, laptop) = (Client::connect(&server).await?, Client::connect(&server).await?);
    phone.delete("cart").await?;

    // Both devices read the empty cart and add to it at the same time.
    let (_, _) = tokio::try_join!(add(&phone, "cart", "milk"), add(&laptop, "cart", "bread"))?;
    let got = phone.get("cart").siblings().await?;
    write(&format!("after two concurrent additions: {} sibling(s)", got.sibling_count()));

    let cart = add(&phone, "cart", "honey").await?;
    let got = laptop.get("cart").await?;
    write(&format!("after the next addition: {} sibling(s), {cart:?}", got.sibling_count()));
    assert!(cart.is_superset(&["milk", "bread", "honey"].map(str::to_owned).into()), "no item is ever lost");
    Ok(())
}

fn write(line: &str) {
    use std::io::Write as _;
    // Nobody may be listening any more.
    let _ = writeln!(std::io::stdout(), "{line}");
}
