//! What becomes of calls while Postgres restarts.

use std::time::Duration;

use ringspan::store::{self, StoreError, StoreOptions};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::{
    postgres_server::Server,
    ring::{Ring, id},
};

/// What a server says that is not ready yet.
const NOT_READY: &[u8] = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0";

/// A way to the shared server that is not there yet.
struct Gate {
    port: u16,
    through: JoinSet<()>,
}

impl Gate {
    async fn closed() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { port: listener.local_addr().unwrap().port(), through: JoinSet::new() }
    }

    /// The same database by this way.
    fn url(&self, url: &str) -> String {
        url.replace(&format!(":{}/", Server::shared().port), &format!(":{}/", self.port))
            + "?sslmode=disable"
    }

    /// Who comes first is told that the server is not ready, all others get through.
    async fn open(&mut self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        self.through.spawn(async move {
            refuse(listener.accept().await.unwrap().0).await;
            let mut lines = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                lines.spawn(async move {
                    let address = ("127.0.0.1", Server::shared().port);
                    let mut server = TcpStream::connect(address).await.unwrap();
                    copy_bidirectional(&mut client, &mut server).await.ok();
                });
            }
        });
    }
}

async fn refuse(mut client: TcpStream) {
    let length = client.read_u32().await.unwrap();
    client.read_exact(&mut vec![0; length as usize - 4]).await.unwrap();
    client.write_u8(b'E').await.unwrap();
    client.write_u32(u32::try_from(NOT_READY.len()).unwrap() + 4).await.unwrap();
    client.write_all(NOT_READY).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_outlasts_a_restart_of_the_server() {
    let ring = Ring::postgres().await;
    let mut gate = Gate::closed().await;
    let url = gate.url(&ring.options.clone().unwrap().url);
    let options = StoreOptions { url, ..ring.options.clone().unwrap() };
    let call = async { store::open(&options).await?.session(id("k")).await };
    tokio::pin!(call);
    let refused = tokio::time::timeout(Duration::from_millis(200), &mut call).await;
    assert!(refused.is_err(), "it does not wait: {refused:?}");
    gate.open().await;
    assert_eq!(call.await, Ok(None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stays_away_is_said_at_the_limit_of_a_call() {
    let ring = Ring::postgres().await;
    let url = Gate::closed().await.url(&ring.options.clone().unwrap().url);
    let timeout = Duration::from_millis(300);
    let options = StoreOptions { url, timeout, ..ring.options.clone().unwrap() };
    let opened = tokio::time::timeout(Duration::from_secs(10), store::open(&options)).await;
    let error = opened.expect("it ends").err().expect("nobody is there");
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
}
