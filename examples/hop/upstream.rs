//! The upstream: echoes, streams and scripted Responses turns, cheaply enough not to be what
//! is measured. It speaks through ringspan's own codec.

use std::{cell::Cell, net::SocketAddr, time::Duration};

use anyhow::{Context, bail};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use ringspan::wire::{
    Batch, BatchBuilder, Incoming, Kind, Message, Role, Socket, SocketOptions,
    handshake::ServerUpgrade,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::spawn_local,
    time::{Instant, MissedTickBehavior, interval_at},
};

/// Bytes that `/flood` hands to the kernel by one write.
const FLOOD_BYTES: usize = 64 * 1024;
/// Events of a turn between its start and its end.
const DELTAS: usize = 20;

pub async fn run(listen: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        // A connection that ends, however it ends, is over: the load counts what arrives.
        spawn_local(async move { serve(stream).await.ok() });
    }
}

async fn serve(mut stream: TcpStream) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let (target, leftover) = upgrade(&mut stream).await?;
    let options = SocketOptions { max_message_bytes: 64 << 20, deflate: false };
    let mut socket = Socket::new(stream, Role::Server, options, leftover);
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let number = |name: &str| -> Option<u64> {
        let pair = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        pair?.parse().ok()
    };
    let bytes = usize::try_from(number("bytes").unwrap_or(100))?;
    match path {
        "/tokens" => tokens(&mut socket, bytes, number("every_us").unwrap_or(10_000)).await,
        "/flood" => flood(&mut socket, bytes).await,
        "/v1/responses" => turns(&mut socket).await,
        _ => echo(&mut socket).await,
    }
}

/// Reads the request and answers it; its target, and what came with it.
async fn upgrade(stream: &mut TcpStream) -> anyhow::Result<(String, Bytes)> {
    let mut input = BytesMut::new();
    let (len, target, headers) = loop {
        if stream.read_buf(&mut input).await? == 0 {
            bail!("closed before its request");
        }
        let mut lines = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut lines);
        if let httparse::Status::Complete(len) = request.parse(&input)? {
            let mut headers = HeaderMap::new();
            for line in request.headers.iter() {
                let name = HeaderName::from_bytes(line.name.as_bytes())?;
                headers.append(name, HeaderValue::from_bytes(line.value)?);
            }
            break (len, request.path.unwrap_or("/").to_owned(), headers);
        }
    };
    let upgrade = ServerUpgrade::check(&headers, &Method::GET, Version::HTTP_11)
        .map_err(|(_, what)| anyhow::anyhow!(what))?;
    let mut answer = b"HTTP/1.1 101 Switching Protocols\r\n".to_vec();
    for (name, value) in &upgrade.response_headers(None, false) {
        answer.extend_from_slice(name.as_str().as_bytes());
        answer.extend_from_slice(b": ");
        answer.extend_from_slice(value.as_bytes());
        answer.extend_from_slice(b"\r\n");
    }
    answer.extend_from_slice(b"\r\n");
    stream.write_all(&answer).await?;
    Ok((target, input.split_off(len).freeze()))
}

/// The next messages; pings are answered, a close ends.
async fn messages(socket: &mut Socket<TcpStream>) -> anyhow::Result<Batch> {
    loop {
        match socket.recv().await.context("ended")?? {
            Incoming::Messages(batch) => return Ok(batch),
            Incoming::Ping(payload) => socket.queue_pong(&payload),
            Incoming::Pong(_) => {}
            Incoming::Close(_) => {
                socket.queue_close(1000, "");
                socket.flush().await?;
                bail!("closed");
            }
        }
        socket.flush().await?;
    }
}

async fn echo(socket: &mut Socket<TcpStream>) -> anyhow::Result<()> {
    loop {
        let batch = messages(socket).await?;
        socket.queue(&batch);
        socket.flush().await?;
    }
}

/// From the first message on, one frame at a time, each with the time it was sent at.
async fn tokens(socket: &mut Socket<TcpStream>, bytes: usize, every_us: u64) -> anyhow::Result<()> {
    messages(socket).await?;
    let every = Duration::from_micros(every_us);
    let phase = every.mul_f64(rand::random());
    let mut ticks = interval_at(Instant::now() + phase, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        tokio::select! {
            biased;
            _ = ticks.tick() => {
                let text = format!("{:020}{:.<1$}", super::monotonic_ns(), bytes.saturating_sub(20));
                socket.queue(&Batch::one(&Message::text(text)));
                socket.flush().await?;
            }
            ended = messages(socket) => drop(ended?),
        }
    }
}

/// From the first message on, as fast as the other side takes it.
async fn flood(socket: &mut Socket<TcpStream>, bytes: usize) -> anyhow::Result<()> {
    messages(socket).await?;
    let mut run = BatchBuilder::default();
    let payload = vec![b'x'; bytes];
    while run.is_empty() || run.weight() + bytes + 10 <= FLOOD_BYTES {
        run.push(Kind::Text, &payload);
    }
    let run = run.finish();
    loop {
        socket.queue(&run);
        socket.flush().await?;
    }
}

/// Answers each create with a turn of [`DELTAS`] deltas and three events around them, one
/// write each.
async fn turns(socket: &mut Socket<TcpStream>) -> anyhow::Result<()> {
    thread_local! { static NEXT: Cell<u64> = const { Cell::new(0) } }
    let delta = "x".repeat(40);
    loop {
        for create in messages(socket).await?.messages() {
            if memchr::memmem::find(&create.payload, b"response.create").is_none() {
                continue;
            }
            let id = NEXT.replace(NEXT.get() + 1);
            let mut sequence = 0;
            let mut event = |kind: &str, fields: &str| {
                let text = format!(r#"{{"type":"{kind}","sequence_number":{sequence},{fields}}}"#);
                sequence += 1;
                Batch::one(&Message::text(text))
            };
            let response = format!(r#""response":{{"id":"resp_{id}","object":"response""#);
            let head = format!(r#"{response},"status":"in_progress","output":[]}}"#);
            socket.queue(&event("response.created", &head));
            socket.flush().await?;
            let item = r#""output_index":0,"item":{"id":"msg_1","type":"message","role":"assistant","content":[]}"#;
            socket.queue(&event("response.output_item.added", item));
            socket.flush().await?;
            for _ in 0..DELTAS {
                let fields = format!(
                    r#""item_id":"msg_1","output_index":0,"content_index":0,"delta":"{delta}""#
                );
                socket.queue(&event("response.output_text.delta", &fields));
                socket.flush().await?;
            }
            let text = delta.repeat(DELTAS);
            let tail = format!(
                r#"{response},"status":"completed","output":[{{"id":"msg_1","type":"message","role":"assistant","content":[{{"type":"output_text","text":"{text}"}}]}}],"usage":{{"input_tokens":1,"output_tokens":{DELTAS},"total_tokens":21}}}}"#
            );
            socket.queue(&event("response.completed", &tail));
            socket.flush().await?;
        }
    }
}
