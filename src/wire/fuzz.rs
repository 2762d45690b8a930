//! Frames and handshakes from bytes that nobody vouches for.

use bytes::{Buf, Bytes, BytesMut};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};

use super::{
    Batch, BatchBuilder, Incoming, Message, Role,
    codec::Decoder,
    handshake::{
        ClientRequest, MAX_REFUSAL_BYTES, ServerUpgrade, accept, encode,
        forwardable_request_headers, parse_head, read_body,
    },
};

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// The request of `data`, if it is one head that hyper could take.
pub(crate) fn request_head(data: &[u8]) -> Option<(String, String, HeaderMap)> {
    let mut lines = [httparse::EMPTY_HEADER; 100];
    let mut request = httparse::Request::new(&mut lines);
    let httparse::Status::Complete(_) = request.parse(data).ok()? else { return None };
    let mut headers = HeaderMap::new();
    for line in request.headers.iter() {
        let name = HeaderName::from_bytes(line.name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_bytes(line.value).ok()?);
    }
    Some((request.method?.to_owned(), request.path?.to_owned(), headers))
}

/// A message, or what came between messages.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Message(Message),
    Control(Incoming),
    /// The code to close with.
    Fault(u16),
}

/// What a decoder makes of `input` when it comes in pieces of `piece` bytes.
fn decoded(role: Role, max: usize, deflate: bool, input: &[u8], piece: usize) -> Vec<Said> {
    let mut decoder = Decoder::new(role, max, deflate);
    let (mut rest, mut said) = (BytesMut::new(), Vec::new());
    for piece in input.chunks(piece) {
        rest.extend_from_slice(piece);
        loop {
            let step = match decoder.decode(&rest) {
                Ok(step) => step,
                Err(fault) => {
                    said.push(Said::Fault(fault.close));
                    return said;
                }
            };
            rest.advance(step.consumed);
            match step.incoming {
                None => break,
                Some(Incoming::Messages(batch)) => {
                    assert!(!batch.is_empty(), "a batch of nothing");
                    assert_eq!(Batch::from_wire(batch.bytes().clone()), Some(batch.clone()));
                    for message in batch.messages() {
                        assert!(message.payload.len() <= max, "a message beyond the limit");
                        said.push(Said::Message(message));
                    }
                }
                Some(control) => said.push(Said::Control(control)),
            }
        }
    }
    said
}

/// A peer's frames: what is made of them does not depend on how they arrive.
pub fn frames(data: &[u8]) {
    let Some((&setup, input)) = data.split_first() else { return };
    let role = if setup & 1 == 0 { Role::Server } else { Role::Client };
    let max = [125, 4096, 1 << 20, 16][usize::from(setup >> 2) & 3];
    let deflate = setup & 2 != 0;
    let whole = decoded(role, max, deflate, input, input.len().max(1));
    for piece in [1 + usize::from(setup >> 4), 7] {
        assert_eq!(whole, decoded(role, max, deflate, input, piece));
    }
}

/// A run of messages from another node: what is taken is canonical to the byte.
pub fn batch(data: &[u8]) {
    let Some(batch) = Batch::from_wire(Bytes::copy_from_slice(data)) else { return };
    let mut again = BatchBuilder::default();
    for message in batch.messages() {
        again.push(message.kind, &message.payload);
    }
    assert_eq!(again.finish(), batch);
}

/// A client's upgrade: what goes to the upstream is one request, with the hop's own headers
/// once and as we wrote them, and of the client's headers those that may pass.
pub fn upgrade(data: &[u8]) {
    let Some((method, path, headers)) = request_head(data) else { return };
    let method = Method::from_bytes(method.as_bytes()).unwrap_or(Method::POST);
    let upgrade = ServerUpgrade::check(&headers, &method, Version::HTTP_11);
    let subprotocols = upgrade.as_ref().map(|it| it.protocols().to_vec()).unwrap_or_default();
    if let Ok(upgrade) = &upgrade {
        let chosen = subprotocols.first().map(String::as_str);
        let answer = upgrade.response_headers(chosen, true);
        assert!(answer.contains_key("sec-websocket-accept"));
    }
    let request = ClientRequest {
        host: "upstream:8443",
        path_and_query: &path,
        headers: &headers,
        subprotocols: &subprotocols,
        offer_deflate: true,
    };
    let Ok(sent) = encode(&request, KEY) else { return };
    let mut lines = [httparse::EMPTY_HEADER; 128];
    let mut read = httparse::Request::new(&mut lines);
    assert_eq!(read.parse(&sent), Ok(httparse::Status::Complete(sent.len())), "more than a head");
    assert_eq!((read.method, read.path), (Some("GET"), Some(path.as_str())));
    let count = |name: &str| read.headers.iter().filter(|line| line.name == name).count();
    for ours in ["host", "connection", "upgrade", "sec-websocket-version", "sec-websocket-key"] {
        assert_eq!(count(ours), 1, "{ours}");
    }
    for never in ["content-length", "transfer-encoding", "te", "trailer", "proxy-authorization"] {
        assert_eq!(count(never), 0, "{never}");
    }
    let ours = 6 + usize::from(!subprotocols.is_empty());
    assert_eq!(read.headers.len(), ours + forwardable_request_headers(&headers).len());
}

/// An upstream's answer to an upgrade.
pub fn answer(data: &[u8]) {
    let Ok(Some((status, headers, len))) = parse_head(data) else { return };
    assert!(len <= data.len());
    let subprotocols = ["v1".to_owned(), "v2".to_owned()];
    let request = ClientRequest {
        host: "h",
        path_and_query: "/",
        headers: &HeaderMap::new(),
        subprotocols: &subprotocols,
        offer_deflate: data.len().is_multiple_of(2),
    };
    if status == 101 {
        if let Ok(head) = accept(headers, KEY, &request) {
            assert!(head.subprotocol.is_none_or(|chosen| subprotocols.contains(&chosen)));
            assert!(!head.deflate || request.offer_deflate);
        }
        return;
    }
    let (start, mut rest) = data[len..].split_at((data.len() - len) / 2);
    let body = read_body(&mut rest, &headers, BytesMut::from(start)).now_or_never();
    // The rest of the answer is there, so nothing has to be waited for.
    assert!(body.is_some_and(|body| body.len() <= MAX_REFUSAL_BYTES));
}
