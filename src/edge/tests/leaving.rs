//! How clients are let go: with all that they were told before.

use std::{
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpSocket,
    time::{Instant, Sleep, sleep_until},
};
use tokio_tungstenite::{
    client_async, client_async_with_config, tungstenite::protocol::WebSocketConfig,
};

use super::*;

/// Size of each socket buffer, before the kernel doubles it.
const BUFFER: u32 = 8 * 1024;

/// A client's end that takes 4 KiB in each of these, once it is slow.
const PAUSE: Duration = Duration::from_millis(80);

struct Slow {
    io: TcpStream,
    tired: Arc<AtomicBool>,
    pause: Pin<Box<Sleep>>,
}

impl AsyncRead for Slow {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.tired.load(Relaxed) {
            std::task::ready!(self.pause.as_mut().poll(cx));
            self.pause.as_mut().reset(Instant::now() + PAUSE);
        }
        let mut part = buf.take(4096);
        std::task::ready!(Pin::new(&mut self.io).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        buf.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Slow {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A listener whose connections hold little between the two programs.
fn narrow() -> TcpListener {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(BUFFER).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    socket.listen(8).unwrap()
}

/// The other end of one.
async fn connect(addr: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(BUFFER).unwrap();
    socket.connect(addr).await.unwrap()
}

fn create(input: &str) -> Message {
    create_in(None, input)
}

fn create_in(lane: Option<&str>, input: &str) -> Message {
    let event = json!({
        "type": "response.create", "model": "m", "store": false, "stream_id": lane, "input": input,
    });
    Message::text(event.to_string())
}

#[tokio::test]
async fn a_drain_leaves_a_slow_client_the_time_to_take_the_end_of_its_turn() {
    let gate = Gate::open(SampleAuth::Open).await;
    let front = Front::on(narrow(), gate, limits(), Auth::None).await;
    let io = connect(front.addr).await;
    let tired = Arc::new(AtomicBool::new(false));
    let pause = Box::pin(sleep_until(Instant::now()));
    let io = Slow { io, tired: Arc::clone(&tired), pause };
    let config = WebSocketConfig::default().read_buffer_size(4096);
    let url = format!("ws://{}/v1/responses", front.addr);
    let (mut client, _) = client_async_with_config(url, io, Some(config)).await.unwrap();

    client.send(create("[deltas=1] [bytes=150000]")).await.unwrap();
    let mut began = None;
    let last = loop {
        let message = soon("an event", client.next()).await.expect("a whole turn").unwrap();
        let event: Value = serde_json::from_str(message.to_text().unwrap()).unwrap();
        match event["type"].as_str().unwrap() {
            "response.created" => front.last_call(),
            // What follows is the terminal event.
            "response.output_item.done" => {
                tired.store(true, Relaxed);
                began = Some(Instant::now());
            }
            "response.completed" => break message,
            _ => {}
        }
    };
    assert!(last.len() > 150_000, "{} bytes", last.len());
    assert!(began.unwrap().elapsed() > Duration::from_secs(2), "it was slow");
    tired.store(false, Relaxed);
    match soon("a close", client.next()).await {
        Some(Ok(Message::Close(Some(close)))) => assert_eq!(u16::from(close.code), 1012),
        other => panic!("expected a close, got {other:?}"),
    }
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_hung_up_on_soon_after_the_cut() {
    let limits = Limits { max_clients: 1, write_timeout: Duration::from_mins(1), ..limits() };
    let gate = Gate::open(SampleAuth::Open).await;
    let front = Front::on(narrow(), gate, limits, Auth::None).await;
    let url = format!("ws://{}/v1/responses", front.addr);
    let (mut client, _) = client_async(url, connect(front.addr).await).await.unwrap();
    client.send(create("[deltas=10] [bytes=150000]")).await.unwrap();
    let session = || front.node.registry.list().pop();
    eventually("the edge has more than it can write", async || {
        session().is_some_and(|session| session.stats.replay_bytes.load(Relaxed) > 250_000)
    })
    .await;
    front.last_call();
    front.edge.drain.cut.cancel();
    // Who finds its place taken is told so.
    eventually("its place is free", async || {
        let mut next = TcpStream::connect(front.addr).await.unwrap();
        let mut told = String::new();
        soon("an end", next.read_to_string(&mut told)).await.unwrap();
        told.is_empty()
    })
    .await;
    drop(client);
}

#[tokio::test]
async fn no_turn_begins_with_a_key_that_was_revoked_while_another_one_ran() {
    let (file, front) = Front::with_key("secret", Gate::open(SampleAuth::Open).await).await;
    let mut client = front.client_with("/v1/responses", "authorization", "Bearer secret").await;
    client.send(create_in(Some("a"), "[deltas=20] [delay=50ms] slow")).await;
    client.until("response.created").await;
    front.revoke(&file);
    client.send(create_in(Some("b"), "late")).await;
    let refused = client.until("error").await;
    assert_eq!((&refused["status"], &refused["stream_id"]), (&json!(401), &json!("b")));
    assert_eq!(refused["error"]["code"], "not_authorized");
    assert_eq!(client.until("response.completed").await["stream_id"], "a");
    assert_eq!(client.closed_with(1008).await, "credential expired or revoked");
}
