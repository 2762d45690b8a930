//! The simulated network, as clients use it.

use std::{cell::RefCell, io, time::Duration};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
pub use turmoil::net::TcpStream;

/// How long any single answer may take: more than a turn may wait for its session's takeover.
pub const PATIENCE: Duration = Duration::from_secs(45);

/// The name that stands for any of the nodes, as that of a balancer does.
pub const RING: &str = "ring:80";

thread_local! {
    static BALANCER: RefCell<Option<(Vec<String>, StdRng)>> = const { RefCell::new(None) };
}

/// From now on [`RING`] is one of these, each time another.
pub fn balance(nodes: Vec<String>, seed: u64) {
    BALANCER.with_borrow_mut(|at| *at = Some((nodes, StdRng::seed_from_u64(seed))));
}

/// Connects to `host:port`.
pub async fn connect(host: &str) -> io::Result<TcpStream> {
    let chosen = BALANCER.with_borrow_mut(|balancer| match balancer {
        Some((nodes, random)) if host == RING => nodes[random.random_range(0..nodes.len())].clone(),
        _ => host.to_owned(),
    });
    TcpStream::connect(chosen).await
}
