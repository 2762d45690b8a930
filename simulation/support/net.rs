//! The simulated network, as clients use it.

use std::{cell::RefCell, io, time::Duration};

use rand::{SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use tokio::time::timeout;
pub use turmoil::net::TcpStream;

/// How long any single answer may take: more than a turn may wait for its session's takeover.
pub const PATIENCE: Duration = Duration::from_secs(45);

/// How long one node may take to accept.
const SOON: Duration = Duration::from_secs(1);

/// The name that stands for any of the nodes, as that of a balancer does.
pub const RING: &str = "ring:80";

thread_local! {
    static BALANCER: RefCell<Option<(Vec<String>, StdRng)>> = const { RefCell::new(None) };
}

/// From now on [`RING`] is one of these, each time another.
pub fn balance(nodes: Vec<String>, seed: u64) {
    BALANCER.with_borrow_mut(|at| *at = Some((nodes, StdRng::seed_from_u64(seed))));
}

/// Connects to `host:port`. A node that refuses, or that does not answer soon, is passed over,
/// as balancers do.
pub async fn connect(host: &str) -> io::Result<TcpStream> {
    let chosen = BALANCER.with_borrow_mut(|balancer| match balancer {
        Some((nodes, random)) if host == RING => {
            nodes.shuffle(random);
            nodes.clone()
        }
        _ => vec![host.to_owned()],
    });
    let mut last = io::Error::from(io::ErrorKind::NotConnected);
    for host in chosen {
        match timeout(SOON, TcpStream::connect(host)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}
