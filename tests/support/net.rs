//! The network that clients use; a simulation has another one.

use std::{io, time::Duration};

pub use tokio::net::TcpStream;

/// How long any single answer may take. Nothing in a ring may hang.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Connects to `host:port`.
pub async fn connect(host: &str) -> io::Result<TcpStream> {
    TcpStream::connect(host).await
}
