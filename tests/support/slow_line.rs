//! A TCP relay over which every byte takes its time, as over a long line.

use std::{net::SocketAddr, time::Duration};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until},
};

/// Pieces under way in one direction of a connection.
const UNDER_WAY: usize = 1024;

/// A running relay; it ends with its connections when it is dropped.
pub struct SlowLine {
    /// `host:port` of its near end.
    pub addr: String,
    task: AbortHandle,
}

impl SlowLine {
    /// To `target` (`host:port`); each piece takes `delay`, give or take `jitter`, and none
    /// overtakes another.
    pub async fn to(target: &str, delay: Duration, jitter: Duration, seed: u64) -> Self {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let target = target.to_owned();
        let task = tokio::spawn(async move {
            let mut random = StdRng::seed_from_u64(seed);
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let (target, seed) = (target.clone(), random.random());
                connections.spawn(relay(near, target, delay, jitter, seed));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { addr, task: task.abort_handle() }
    }
}

impl Drop for SlowLine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(near: TcpStream, target: String, delay: Duration, jitter: Duration, seed: u64) {
    let Ok(far) = TcpStream::connect(target).await else { return };
    near.set_nodelay(true).ok();
    far.set_nodelay(true).ok();
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    tokio::join!(
        carry(near_in, far_out, delay, jitter, StdRng::seed_from_u64(seed)),
        carry(far_in, near_out, delay, jitter, StdRng::seed_from_u64(!seed)),
    );
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    delay: Duration,
    jitter: Duration,
    mut random: StdRng,
) {
    let (under_way, mut arriving) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let reading = async move {
        let mut last = Instant::now();
        let mut buffer = vec![0; 64 << 10];
        while let Ok(got @ 1..) = from.read(&mut buffer).await {
            let takes =
                delay.saturating_sub(jitter) + jitter.mul_f64(random.random_range(0.0..=2.0));
            last = last.max(Instant::now() + takes);
            if under_way.send((last, buffer[..got].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((at, piece)) = arriving.recv().await {
            sleep_until(at).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        to.shutdown().await.ok();
    };
    tokio::join!(reading, writing);
}
