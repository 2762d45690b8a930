use tokio::io::{DuplexStream, duplex};

use super::*;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
    lines.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).fold(
        HeaderMap::new(),
        |mut headers, (name, value)| {
            headers.append(name, value);
            headers
        },
    )
}

fn upgrade() -> HeaderMap {
    headers(&[
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", KEY),
        ("sec-websocket-protocol", "chat, v2.json"),
        ("sec-websocket-extensions", "permessage-deflate; client_max_window_bits"),
    ])
}

#[test]
fn the_example_of_the_rfc_is_accepted() {
    assert_eq!(accept_key(KEY), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    let upgrade = ServerUpgrade::check(&upgrade(), &Method::GET, Version::HTTP_11).unwrap();
    assert_eq!(upgrade.protocols(), ["chat", "v2.json"]);
    let answer = upgrade.response_headers(Some("v2.json"), true);
    assert_eq!(answer["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert_eq!(answer["sec-websocket-protocol"], "v2.json");
    assert!(answer["sec-websocket-extensions"].to_str().unwrap().starts_with("permessage-deflate"));
    let bare = upgrade.response_headers(Some("not offered"), false);
    assert!(!bare.contains_key("sec-websocket-protocol"));
    assert!(!bare.contains_key("sec-websocket-extensions"));
}

#[test]
fn a_request_that_is_no_upgrade_is_refused_with_its_reason() {
    let status = |headers: &HeaderMap| {
        ServerUpgrade::check(headers, &Method::GET, Version::HTTP_11).unwrap_err().0
    };
    for name in ["connection", "upgrade", "sec-websocket-version", "sec-websocket-key"] {
        let mut missing = upgrade();
        missing.remove(name);
        assert_eq!(status(&missing), 400, "{name}");
    }
    for (name, value) in [
        ("sec-websocket-version", "8"),
        ("sec-websocket-key", "c2hvcnQ="),
        ("upgrade", "h2c"),
        ("sec-websocket-protocol", "a b"),
    ] {
        let mut wrong = upgrade();
        wrong.insert(name, HeaderValue::from_static(value));
        assert_eq!(status(&wrong), 400, "{name}");
    }
    let mut twice = upgrade();
    twice.append("sec-websocket-key", HeaderValue::from_static(KEY));
    assert_eq!(status(&twice), 400);
    let post = ServerUpgrade::check(&upgrade(), &Method::POST, Version::HTTP_11);
    assert_eq!(post.unwrap_err().0, 405);
    assert!(ServerUpgrade::check(&upgrade(), &Method::GET, Version::HTTP_10).is_err());
}

#[test]
fn what_belongs_to_the_hop_stays_there() {
    let mut all = upgrade();
    for (name, value) in [
        ("connection", "x-private"),
        ("x-private", "1"),
        ("host", "edge"),
        ("te", "trailers"),
        ("proxy-authorization", "secret"),
        ("keep-alive", "timeout=5"),
        ("content-length", "0"),
        ("transfer-encoding", "chunked"),
        ("authorization", "Bearer x"),
        ("openai-beta", "a"),
        ("cookie", "c=1"),
    ] {
        all.append(name, HeaderValue::from_static(value));
    }
    all.append("openai-beta", HeaderValue::from_static("b"));
    let kept = forwardable_request_headers(&all);
    let mut names: Vec<_> = kept.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["authorization", "cookie", "openai-beta"]);
    assert_eq!(kept.get_all("openai-beta").iter().count(), 2);
    assert_eq!(forwardable_response_headers(&all), kept);
}

/// Answers one request with what `answer` makes of its key; returns the request.
async fn serve(mut io: DuplexStream, answer: impl Fn(&str) -> String) -> String {
    let mut request = BytesMut::new();
    while !request.ends_with(b"\r\n\r\n") {
        assert!(read_some(&mut io, &mut request).await.unwrap());
    }
    let request = String::from_utf8(request.to_vec()).unwrap();
    let key = request.lines().find_map(|line| line.strip_prefix("sec-websocket-key: ")).unwrap();
    // In two pieces, so that no head comes whole. The client may have gone by the second.
    let answer = answer(key);
    let (head, tail) = answer.split_at(answer.len() / 2);
    io.write_all(head.as_bytes()).await.unwrap();
    tokio::task::yield_now().await;
    let _ = io.write_all(tail.as_bytes()).await;
    request
}

async fn handshake(
    answer: impl Fn(&str) -> String,
) -> (Result<Connected<DuplexStream>, HandshakeError>, String) {
    let (client, server) = duplex(512);
    let further = headers(&[("authorization", "Bearer x"), ("sec-websocket-key", "theirs")]);
    let request = ClientRequest {
        host: "upstream:8443",
        path_and_query: "/v1/responses?a=b",
        headers: &further,
        subprotocols: &["v1".to_owned(), "v2".to_owned()],
        offer_deflate: true,
    };
    tokio::join!(connect(client, request, MAX_HEAD_BYTES), serve(server, answer))
}

fn switching(key: &str, lines: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\n{lines}\r\n",
        accept_key(key)
    )
}

#[tokio::test]
async fn a_server_that_agrees_becomes_a_websocket() {
    let (connected, request) = handshake(|key| {
        let lines = "Sec-WebSocket-Protocol: v2\r\nopenai-model: m\r\n\
                     Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover\r\n";
        format!("HTTP/1.1 100 Continue\r\n\r\n{}\u{1}frames", switching(key, lines))
    })
    .await;
    let connected = connected.unwrap();
    assert!(connected.head.deflate);
    assert_eq!(connected.head.subprotocol.as_deref(), Some("v2"));
    assert_eq!(connected.head.headers["openai-model"], "m");
    let mut rest = connected.leftover.to_vec();
    let mut io = connected.io;
    io.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"\x01frames");

    assert!(request.starts_with("GET /v1/responses?a=b HTTP/1.1\r\nhost: upstream:8443\r\n"));
    assert!(request.contains("\r\nauthorization: Bearer x\r\n"));
    assert!(request.contains("\r\nsec-websocket-protocol: v1, v2\r\n"));
    assert!(!request.contains("theirs"));
}

#[tokio::test]
async fn a_server_that_chooses_what_was_not_offered_is_invalid() {
    for lines in [
        "Sec-WebSocket-Protocol: v3\r\n",
        "Sec-WebSocket-Extensions: permessage-deflate\r\n",
        "Sec-WebSocket-Extensions: x-other\r\n",
    ] {
        let (connected, _) = handshake(|key| switching(key, lines)).await;
        assert!(matches!(connected, Err(HandshakeError::Invalid(_))), "{lines}");
    }
    let (wrong_key, _) = handshake(|_| switching("other", "")).await;
    assert!(matches!(wrong_key, Err(HandshakeError::Invalid(_))));
    let (not_http, _) = handshake(|_| "SSH-2.0-OpenSSH_9\r\n\r\n".into()).await;
    assert!(matches!(not_http, Err(HandshakeError::Invalid(_))));
    let (cut, _) = handshake(|_| "HTTP/1.1 101 Sw".into()).await;
    assert!(matches!(cut, Err(HandshakeError::Io(_))));
    let (flood, _) = handshake(|_| format!("HTTP/1.1 101 S\r\nx: {}", "y".repeat(80_000))).await;
    assert!(matches!(flood, Err(HandshakeError::Invalid(_))));
}

#[tokio::test]
async fn a_refusal_brings_its_status_headers_and_body() {
    for (framing, body, expected) in [
        ("Content-Length: 5", "hello and more".to_owned(), "hello".to_owned()),
        ("Content-Length: 50", "cut".into(), "cut".into()),
        (
            "Transfer-Encoding: chunked",
            "5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n".into(),
            "hello world".into(),
        ),
        ("Content-Length: 90000", "z".repeat(90_000), "z".repeat(MAX_REFUSAL_BYTES)),
        (
            "Transfer-Encoding: chunked",
            format!("15F90\r\n{}\r\n0\r\n\r\n", "z".repeat(90_000)),
            "z".repeat(MAX_REFUSAL_BYTES),
        ),
    ] {
        let answer = format!("HTTP/1.1 503 Busy\r\nRetry-After: 1\r\n{framing}\r\n\r\n{body}");
        match handshake(|_| answer.clone()).await.0 {
            Err(HandshakeError::Refused { status, headers, body }) => {
                assert_eq!(
                    (status.as_u16(), &headers["retry-after"]),
                    (503, &HeaderValue::from_static("1"))
                );
                assert!(body == expected, "{framing}: {} bytes", body.len());
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn nothing_can_be_smuggled_into_the_request() {
    for (host, path) in
        [("h", "/a b"), ("h", "/a\r\nx: y"), ("h", "a"), ("h", "/ä"), ("", "/"), ("h\r\nx: y", "/")]
    {
        let request = ClientRequest {
            host,
            path_and_query: path,
            headers: &HeaderMap::new(),
            subprotocols: &[],
            offer_deflate: false,
        };
        let (client, _server) = duplex(512);
        let result = connect(client, request, MAX_HEAD_BYTES).await;
        assert!(matches!(result, Err(HandshakeError::Invalid(_))), "{host:?} {path:?}");
    }
}
