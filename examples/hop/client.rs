//! One connection of the load: a WebSocket, or HTTP turns.

use std::net::SocketAddr;

use anyhow::{Context, bail, ensure};
use bytes::{Buf, BytesMut};
use http::HeaderMap;
use memchr::memmem;
use ringspan::wire::{
    Batch, Incoming, Message, Role, Socket, SocketOptions,
    handshake::{self, ClientRequest},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};

/// Opens a WebSocket; `session` names a conversation to a Responses route.
pub async fn connect(
    to: SocketAddr,
    path: &str,
    session: Option<&str>,
) -> anyhow::Result<Socket<TcpStream>> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let mut headers = HeaderMap::new();
    // What a client sends along, a proxy may have to keep.
    headers.insert("user-agent", "hop/1.0 (a load, not a person)".parse()?);
    headers.insert("authorization", format!("Bearer {:064}", 1).parse()?);
    if let Some(session) = session {
        headers.insert("session-id", session.parse()?);
    }
    let request = ClientRequest {
        host: "bench",
        path_and_query: path,
        headers: &headers,
        subprotocols: &[],
        offer_deflate: false,
    };
    let connected = handshake::connect(stream, request, handshake::MAX_HEAD_BYTES)
        .await
        .map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let options = SocketOptions { max_message_bytes: 64 << 20, deflate: false };
    Ok(Socket::new(connected.io, Role::Client, options, connected.leftover))
}

/// The next messages; pings are answered, a close is an error.
pub async fn messages(socket: &mut Socket<TcpStream>) -> anyhow::Result<Batch> {
    loop {
        match socket.recv().await.context("the connection ended")?? {
            Incoming::Messages(batch) => return Ok(batch),
            Incoming::Ping(payload) => {
                socket.queue_pong(&payload);
                socket.flush().await?;
            }
            Incoming::Pong(_) => {}
            Incoming::Close(frame) => bail!("closed: {frame:?}"),
        }
    }
}

pub async fn say(socket: &mut Socket<TcpStream>, text: String) -> anyhow::Result<()> {
    socket.queue(&Batch::one(&Message::text(text)));
    Ok(socket.flush().await?)
}

/// What a turn came to.
pub struct Turn {
    pub response_id: String,
    /// When its first event was here.
    pub first: Instant,
}

fn create(kind: &str, previous: Option<&str>) -> String {
    let previous =
        previous.map_or_else(String::new, |id| format!(r#","previous_response_id":"{id}""#));
    format!(
        r#"{{{kind}"model":"m","store":false,"stream":true,"input":[{{"type":"message","role":"user","content":[{{"type":"input_text","text":"What does a hop cost?"}}]}}]{previous}}}"#
    )
}

/// One turn over a WebSocket, after `previous`.
pub async fn turn(socket: &mut Socket<TcpStream>, previous: Option<&str>) -> anyhow::Result<Turn> {
    say(socket, create(r#""type":"response.create","#, previous)).await?;
    let mut first = None;
    loop {
        let batch = messages(socket).await?;
        let first = *first.get_or_insert_with(Instant::now);
        for message in batch.messages() {
            if let Some(response_id) = ended(&message.payload)? {
                return Ok(Turn { response_id, first });
            }
        }
    }
}

/// The response's id, if `event` completes it.
fn ended(event: &[u8]) -> anyhow::Result<Option<String>> {
    const ID: &[u8] = br#""id":"resp_"#;
    if memmem::find(event, br#""type":"response.completed""#).is_none() {
        let failed = memmem::find(event, br#""type":"error""#).is_some();
        ensure!(!failed, "the turn failed: {}", String::from_utf8_lossy(event));
        return Ok(None);
    }
    let at = memmem::find(event, ID).context("a response without an id")? + ID.len() - 5;
    let len = event[at..].iter().position(|byte| *byte == b'"').context("an id without end")?;
    Ok(Some(String::from_utf8_lossy(&event[at..at + len]).into_owned()))
}

/// A kept-alive HTTP connection.
pub struct Http {
    stream: TcpStream,
    input: BytesMut,
    path: String,
    session: String,
}

impl Http {
    pub async fn connect(to: SocketAddr, path: &str, session: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        let (path, session) = (path.to_owned(), session.to_owned());
        Ok(Self { stream, input: BytesMut::new(), path, session })
    }

    /// One turn by POST, answered by an event stream.
    pub async fn turn(&mut self, previous: Option<&str>) -> anyhow::Result<Turn> {
        const END: &[u8] = b"\r\n0\r\n\r\n";
        let body = create("", previous);
        let request = format!(
            "POST {} HTTP/1.1\r\nhost: bench\r\naccept: text/event-stream\r\n\
             content-type: application/json\r\nsession-id: {}\r\ncontent-length: {}\r\n\r\n{body}",
            self.path,
            self.session,
            body.len()
        );
        self.stream.write_all(request.as_bytes()).await?;
        let mut first = None;
        loop {
            ensure!(self.stream.read_buf(&mut self.input).await? > 0, "the connection ended");
            if first.is_none() && memmem::find(&self.input, b"\ndata:").is_some() {
                first = Some(Instant::now());
            }
            let Some(end) = memmem::find(&self.input, END) else {
                let refused = !self.input.starts_with(b"HTTP/1.1 200") && self.input.len() > 12;
                ensure!(!refused, "refused: {}", String::from_utf8_lossy(&self.input));
                continue;
            };
            let events = self.input.split_to(end);
            self.input.advance(END.len());
            let response_id = ended(&events)?.context("the turn did not complete")?;
            return Ok(Turn { response_id, first: first.context("no event came")? });
        }
    }
}
