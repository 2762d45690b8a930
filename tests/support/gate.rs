//! A TCP relay that can be shut: what is behind it is then gone, as a server that stopped.

use std::{net::SocketAddr, sync::Arc};

use parking_lot::Mutex;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

use super::{eventually, process::free_port};

/// Relays one loopback port to an address.
pub struct Gate {
    pub port: u16,
    /// `host:port` behind it.
    pub target: String,
    open: Mutex<Option<JoinHandle<()>>>,
}

impl Gate {
    /// An open gate to `target` (`host:port`).
    pub async fn open(target: &str) -> Arc<Self> {
        let gate = Self { port: free_port(), target: target.to_owned(), open: Mutex::default() };
        gate.reopen().await;
        Arc::new(gate)
    }

    /// Breaks every connection; new ones are refused from when this returns.
    pub async fn shut(&self) {
        let task = self.open.lock().take();
        if let Some(task) = task {
            task.abort();
            task.await.ok();
        }
    }

    /// Lets connections through again.
    pub async fn reopen(&self) {
        let addr = SocketAddr::from(([127, 0, 0, 1], self.port));
        let listener = eventually("the gate's port is free", super::http::PATIENCE, async || {
            TcpListener::bind(addr).await.ok()
        })
        .await;
        let target = self.target.clone();
        *self.open.lock() = Some(tokio::spawn(relay(listener, target)));
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        if let Some(task) = self.open.get_mut() {
            task.abort();
        }
    }
}

/// Ends, with all that it relays, when it is dropped.
async fn relay(listener: TcpListener, target: String) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((mut near, _)) = listener.accept().await else { continue };
        let target = target.clone();
        connections.spawn(async move {
            if let Ok(mut far) = TcpStream::connect(target).await {
                near.set_nodelay(true).ok();
                far.set_nodelay(true).ok();
                copy_bidirectional(&mut near, &mut far).await.ok();
            }
        });
        while connections.try_join_next().is_some() {}
    }
}
