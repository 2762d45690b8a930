//! The HTTP/1.1 upgrade that starts a WebSocket (RFC 6455 section 4), both ends, and which
//! headers pass through a hop.

use std::io;

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::{Buf, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version,
    header::{
        CONNECTION, CONTENT_LENGTH, EXPECT, HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS,
        SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, TE, TRAILER,
        TRANSFER_ENCODING, UPGRADE,
    },
};
use sha1::{Digest, Sha1};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::deflate;

/// Largest response head to an upgrade, in bytes, unless the caller says otherwise.
pub const MAX_HEAD_BYTES: usize = 64 * 1024;

/// How much of a refusal's body is read, in bytes.
pub const MAX_REFUSAL_BYTES: usize = 64 * 1024;

/// Header lines in a response head at most.
const MAX_HEADERS: usize = 128;

/// Bytes asked of the stream by one read.
const READ_BYTES: usize = 4 * 1024;

/// RFC 6455 section 1.3.
const ACCEPT_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The `Sec-WebSocket-Accept` that belongs to a `Sec-WebSocket-Key`.
#[must_use]
pub fn accept_key(key: &str) -> String {
    let digest = Sha1::new().chain_update(key.as_bytes()).chain_update(ACCEPT_SUFFIX).finalize();
    BASE64_STANDARD.encode(digest)
}

/// A client's valid request to upgrade.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerUpgrade {
    accept: String,
    protocols: Vec<String>,
    deflate: Option<&'static str>,
}

impl ServerUpgrade {
    /// Checks a request; the error is the answer's status and what was wrong. To a 400 the
    /// caller adds `Sec-WebSocket-Version: 13` (never 426: clients take it as final).
    pub fn check(
        headers: &HeaderMap,
        method: &Method,
        version: Version,
    ) -> Result<Self, (StatusCode, &'static str)> {
        let bad = |message| Err((StatusCode::BAD_REQUEST, message));
        if method != Method::GET {
            return Err((StatusCode::METHOD_NOT_ALLOWED, "an upgrade is a GET"));
        }
        if version != Version::HTTP_11 {
            return bad("an upgrade needs HTTP/1.1");
        }
        if !has_token(headers, &CONNECTION, "upgrade") || !has_token(headers, &UPGRADE, "websocket")
        {
            return bad("expected `Connection: Upgrade` and `Upgrade: websocket`");
        }
        if only(headers, &SEC_WEBSOCKET_VERSION) != Some("13") {
            return bad("expected `Sec-WebSocket-Version: 13`");
        }
        let key = only(headers, &SEC_WEBSOCKET_KEY)
            .filter(|key| BASE64_STANDARD.decode(key).is_ok_and(|key| key.len() == 16));
        let Some(key) = key else {
            return bad("expected one `Sec-WebSocket-Key` of 16 bytes in base64");
        };
        let protocols: Vec<_> =
            elements(headers, &SEC_WEBSOCKET_PROTOCOL).map(str::to_owned).collect();
        if !protocols.iter().all(|protocol| is_token(protocol)) {
            return bad("`Sec-WebSocket-Protocol` holds what is not a token");
        }
        let deflate = deflate::server_accept(values(headers, &SEC_WEBSOCKET_EXTENSIONS));
        Ok(Self { accept: accept_key(key), protocols, deflate })
    }

    /// Subprotocols in the client's order of preference.
    #[must_use]
    pub fn protocols(&self) -> &[String] {
        &self.protocols
    }

    /// The client offered a compression that we can do.
    #[must_use]
    pub fn offers_deflate(&self) -> bool {
        self.deflate.is_some()
    }

    /// Headers of the 101, with the subprotocol chosen (left out if it was not offered), and
    /// with compression if it is wanted and was offered.
    #[must_use]
    pub fn response_headers(&self, protocol: Option<&str>, deflate: bool) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(5);
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        if let Ok(accept) = HeaderValue::from_str(&self.accept) {
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        }
        let offered = protocol.filter(|&chosen| self.protocols.iter().any(|p| p == chosen));
        if let Some(Ok(protocol)) = offered.map(HeaderValue::from_str) {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, protocol);
        }
        if let Some(answer) = self.deflate.filter(|_| deflate) {
            headers.insert(SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_static(answer));
        }
        headers
    }
}

/// What [`connect`] asks for.
#[derive(Clone, Copy, Debug)]
pub struct ClientRequest<'a> {
    /// Host, and port where it is not the scheme's own.
    pub host: &'a str,
    /// Begins with a slash.
    pub path_and_query: &'a str,
    /// Further headers; those of the hop itself are left out.
    pub headers: &'a HeaderMap,
    /// In order of preference.
    pub subprotocols: &'a [String],
    pub offer_deflate: bool,
}

/// A stream that has become a WebSocket.
#[derive(Debug)]
pub struct Connected<S> {
    pub io: S,
    pub head: ResponseHead,
    /// Bytes of frames that came with the head.
    pub leftover: Bytes,
}

/// What the server settled.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    pub headers: HeaderMap,
    pub subprotocol: Option<String>,
    pub deflate: bool,
}

/// Why there is no WebSocket.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The server answered, but not with 101.
    #[error("the server answered {status}")]
    Refused {
        status: StatusCode,
        headers: HeaderMap,
        /// At most [`MAX_REFUSAL_BYTES`]; what could not be read is missing.
        body: Bytes,
    },
    /// The request cannot be sent, or the answer breaks the protocol.
    #[error("{0}")]
    Invalid(&'static str),
}

/// Upgrades `io` to a WebSocket. It waits as long as the server does: put a time limit
/// around it. Dropping it drops the stream.
pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    mut io: S,
    request: ClientRequest<'_>,
    max_head_bytes: usize,
) -> Result<Connected<S>, HandshakeError> {
    let key = BASE64_STANDARD.encode(rand::random::<[u8; 16]>());
    let head = encode(&request, &key).map_err(HandshakeError::Invalid)?;
    io.write_all(&head).await?;
    io.flush().await?;

    let mut input = BytesMut::new();
    let (status, headers) = loop {
        if let Some((status, headers, len)) = parse_head(&input).map_err(HandshakeError::Invalid)? {
            input.advance(len);
            // 100 and 103 come ahead of the answer.
            if status == StatusCode::SWITCHING_PROTOCOLS || !status.is_informational() {
                break (status, headers);
            }
        } else if input.len() >= max_head_bytes {
            return Err(HandshakeError::Invalid("the response head is too large"));
        } else if !read_some(&mut io, &mut input).await? {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    };
    if status != StatusCode::SWITCHING_PROTOCOLS {
        let body = read_body(&mut io, &headers, input).await;
        return Err(HandshakeError::Refused { status, headers, body });
    }
    let head = accept(headers, &key, &request).map_err(HandshakeError::Invalid)?;
    Ok(Connected { io, head, leftover: input.freeze() })
}

pub(super) fn encode(request: &ClientRequest<'_>, key: &str) -> Result<Vec<u8>, &'static str> {
    let visible = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    if !request.path_and_query.starts_with('/') || !visible(request.path_and_query) {
        return Err("the path is not one that may be sent");
    }
    if request.host.is_empty() || !visible(request.host) {
        return Err("the host is not one that may be sent");
    }
    if !request.subprotocols.iter().all(|protocol| is_token(protocol)) {
        return Err("a subprotocol is not a token");
    }
    let mut out = Vec::with_capacity(1024);
    for part in ["GET ", request.path_and_query, " HTTP/1.1\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    let mut line = |name: &str, value: &[u8]| {
        for part in [name.as_bytes(), b": ", value, b"\r\n"] {
            out.extend_from_slice(part);
        }
    };
    line("host", request.host.as_bytes());
    line("connection", b"Upgrade");
    line("upgrade", b"websocket");
    line("sec-websocket-version", b"13");
    line("sec-websocket-key", key.as_bytes());
    if !request.subprotocols.is_empty() {
        line("sec-websocket-protocol", request.subprotocols.join(", ").as_bytes());
    }
    if request.offer_deflate {
        line("sec-websocket-extensions", deflate::client_offer().as_bytes());
    }
    for (name, value) in &forwardable_request_headers(request.headers) {
        line(name.as_str(), value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    Ok(out)
}

pub(super) type Head = (StatusCode, HeaderMap, usize);

/// Status, headers and length of a whole head, None while it is incomplete.
pub(super) fn parse_head(input: &[u8]) -> Result<Option<Head>, &'static str> {
    const INVALID: &str = "the answer is not HTTP/1.1";
    let mut lines = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut lines);
    let len = match response.parse(input) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(INVALID),
    };
    let status = response.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(INVALID)?;
    let mut headers = HeaderMap::with_capacity(response.headers.len());
    for line in response.headers.iter() {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| INVALID)?;
        let value = HeaderValue::from_bytes(line.value).map_err(|_| INVALID)?;
        headers.append(name, value);
    }
    Ok(Some((status, headers, len)))
}

/// Holds the server to what RFC 6455 section 4.1 asks of a 101.
pub(super) fn accept(
    headers: HeaderMap,
    key: &str,
    request: &ClientRequest<'_>,
) -> Result<ResponseHead, &'static str> {
    if !has_token(&headers, &CONNECTION, "upgrade") || !has_token(&headers, &UPGRADE, "websocket") {
        return Err("the server switched to another protocol");
    }
    if only(&headers, &SEC_WEBSOCKET_ACCEPT) != Some(accept_key(key).as_str()) {
        return Err("`Sec-WebSocket-Accept` does not belong to the key");
    }
    let subprotocol = match headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().count() {
        0 => None,
        _ => Some(
            only(&headers, &SEC_WEBSOCKET_PROTOCOL)
                .filter(|&chosen| request.subprotocols.iter().any(|p| p == chosen))
                .ok_or("the server chose a subprotocol that was not offered")?
                .to_owned(),
        ),
    };
    let deflate = deflate::client_accepts(values(&headers, &SEC_WEBSOCKET_EXTENSIONS))?;
    if deflate && !request.offer_deflate {
        return Err("the server chose an extension that was not offered");
    }
    Ok(ResponseHead { headers, subprotocol, deflate })
}

/// As much of a refusal's body as comes, up to the limit. `input` is its start.
pub(super) async fn read_body<S: AsyncRead + Unpin>(
    io: &mut S,
    headers: &HeaderMap,
    mut input: BytesMut,
) -> Bytes {
    if has_token(headers, &TRANSFER_ENCODING, "chunked") {
        return read_chunks(io, input).await;
    }
    let len = only(headers, &CONTENT_LENGTH).and_then(|len| len.parse().ok());
    // Without a length the body ends with the connection, which may never be.
    let len = len.unwrap_or(input.len()).min(MAX_REFUSAL_BYTES);
    while input.len() < len && read_some(io, &mut input).await.unwrap_or(false) {}
    input.truncate(len);
    input.freeze()
}

async fn read_chunks<S: AsyncRead + Unpin>(io: &mut S, mut input: BytesMut) -> Bytes {
    let mut body = BytesMut::new();
    while body.len() < MAX_REFUSAL_BYTES {
        match httparse::parse_chunk_size(&input) {
            Ok(httparse::Status::Complete((_, 0))) | Err(_) => break,
            Ok(httparse::Status::Complete((line, size))) => {
                let room = MAX_REFUSAL_BYTES - body.len();
                let size = usize::try_from(size).unwrap_or(usize::MAX);
                let end = line + size.min(room);
                while input.len() < end && read_some(io, &mut input).await.unwrap_or(false) {}
                let end = end.min(input.len());
                body.extend_from_slice(&input[line..end]);
                input.advance(end);
                // The line end after the chunk.
                while input.len() < 2 && read_some(io, &mut input).await.unwrap_or(false) {}
                if size > room || !input.starts_with(b"\r\n") {
                    break;
                }
                input.advance(2);
            }
            Ok(httparse::Status::Partial) => {
                let more =
                    input.len() < READ_BYTES && read_some(io, &mut input).await.unwrap_or(false);
                if !more {
                    break;
                }
            }
        }
    }
    body.freeze()
}

/// False at the end of the stream.
async fn read_some<S: AsyncRead + Unpin>(io: &mut S, input: &mut BytesMut) -> io::Result<bool> {
    input.reserve(READ_BYTES);
    Ok(io.read_buf(input).await? > 0)
}

/// Headers that concern one connection, or one WebSocket handshake, and stop at a hop.
#[must_use]
pub fn is_hop_by_hop(name: &HeaderName) -> bool {
    [CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE]
        .contains(name)
        || name.as_str() == "keep-alive"
        || name.as_str().starts_with("proxy-")
        || name.as_str().starts_with("sec-websocket-")
}

/// A client's headers as the upstream may see them.
#[must_use]
pub fn forwardable_request_headers(headers: &HeaderMap) -> HeaderMap {
    forwardable(headers)
}

/// An upstream's headers as the client may see them.
#[must_use]
pub fn forwardable_response_headers(headers: &HeaderMap) -> HeaderMap {
    forwardable(headers)
}

/// A value with bytes of its own. A session keeps its headers, and one that was read may share
/// the whole buffer that it was read into.
fn unshared(value: &HeaderValue) -> HeaderValue {
    let Ok(mut own) = HeaderValue::from_bytes(value.as_bytes()) else { return value.clone() };
    own.set_sensitive(value.is_sensitive());
    own
}

/// All but the hop's own headers and those that `Connection` names.
fn forwardable(headers: &HeaderMap) -> HeaderMap {
    let named: Vec<_> = elements(headers, &CONNECTION).collect();
    let passes = |name: &HeaderName| {
        !is_hop_by_hop(name) && !named.iter().any(|other| other.eq_ignore_ascii_case(name.as_str()))
    };
    headers
        .iter()
        .filter(|(name, _)| passes(name))
        .map(|(name, value)| (name.clone(), unshared(value)))
        .fold(HeaderMap::new(), |mut kept, (name, value)| {
            kept.append(name, value);
            kept
        })
}

/// Values of a header that are text.
fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok())
}

/// Elements of a header's comma-separated list.
fn elements<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    values(headers, name)
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|e| !e.is_empty())
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    elements(headers, name).any(|element| element.eq_ignore_ascii_case(token))
}

/// The value of a header that may come once only.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut all = headers.get_all(name).iter();
    let value = all.next()?.to_str().ok()?.trim();
    all.next().is_none().then_some(value)
}

/// RFC 9110 section 5.6.2.
fn is_token(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(allowed)
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
