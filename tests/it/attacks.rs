//! Clients that mean harm, and what others notice of them: nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::support::{ALICE, Node, Ring, RingOptions, Ws};

/// What a well-behaved client may wait for an echo on a machine that is busy with the tests.
const PROMPT: Duration = Duration::from_secs(5);

/// By when a client that reads nothing is dropped, with a `write_timeout` of two seconds.
const DROPPED: Duration = Duration::from_secs(15);

/// What an attack may cost a node.
const MEMORY: u64 = 96 << 20;

fn authority(node: &Node) -> &str {
    node.client_url.trim_start_matches("http://")
}

async fn connect(node: &Node) -> TcpStream {
    TcpStream::connect(authority(node)).await.unwrap()
}

/// Reads to the end of the connection; what came.
async fn rest(stream: &mut TcpStream, limit: Duration) -> Result<Vec<u8>, &'static str> {
    let mut got = Vec::new();
    match timeout(limit, stream.read_to_end(&mut got)).await {
        Ok(_) => Ok(got),
        Err(_) => Err("still open"),
    }
}

/// Echoes on an open socket and attaches anew while `attack` goes on.
async fn others_notice_nothing<T>(node: &Node, attack: impl Future<Output = T>) -> T {
    let memory = || node.process().resident_bytes().unwrap();
    let before = memory();
    let mut held = Ws::open(&node.url("/rooms/held"), &[ALICE]).await;
    let mut attack = std::pin::pin!(attack);
    let mut worst = Duration::ZERO;
    let mut n = 0;
    let result = loop {
        if let Ok(result) = timeout(Duration::from_millis(20), attack.as_mut()).await {
            break result;
        }
        let began = Instant::now();
        held.text(format!("{n}")).await;
        assert_eq!(held.expect_text().await, format!("{n}"));
        if n % 16 == 0 {
            let mut fresh = Ws::open(&node.url(&format!("/rooms/fresh-{n}")), &[ALICE]).await;
            fresh.text("hello").await;
            assert_eq!(fresh.expect_text().await, "hello");
        }
        worst = worst.max(began.elapsed());
        n += 1;
    };
    let grown = memory().saturating_sub(before);
    println!("{n} echoes, the slowest after {worst:?}; {} KiB more memory", grown >> 10);
    assert!(worst < PROMPT, "{worst:?}");
    assert!(grown < MEMORY, "{grown} bytes");
    result
}

#[tokio::test]
async fn upgrades_that_come_byte_by_byte_and_connections_that_say_nothing_are_ended() {
    let options = RingOptions::nodes(1).setting("upgrade_timeout", "\"2s\"");
    let ring = Ring::start(options).await;
    let node = ring.node(0);
    let attack = async {
        let mut slow = JoinSet::new();
        for n in 0..400 {
            let mut stream = connect(node).await;
            slow.spawn(async move {
                let head = b"GET /rooms/slow HTTP/1.1\r\nhost: x\r\nx-slow: ";
                let said = if n % 4 == 0 { 0 } else { head.len() };
                stream.write_all(&head[..said]).await.unwrap();
                let began = Instant::now();
                while said > 0 && began.elapsed() < Duration::from_secs(10) {
                    if stream.write_all(b"x").await.is_err() {
                        break;
                    }
                    sleep(Duration::from_millis(300)).await;
                }
                rest(&mut stream, Duration::from_secs(10)).await.map(|_| began.elapsed())
            });
        }
        slow.join_all().await
    };
    let ended = others_notice_nothing(node, attack).await;
    for end in ended {
        let took = end.expect("a connection that says nothing of use is ended");
        assert!(took < Duration::from_secs(9), "{took:?}");
    }
}

#[tokio::test]
async fn a_body_that_trickles_in_is_given_up() {
    let options = RingOptions::nodes(1).setting("upgrade_timeout", "\"1s\"");
    let ring = Ring::start(options).await;
    let node = ring.node(0);
    let mut stream = connect(node).await;
    let head = format!(
        "POST /v1/responses HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\
         authorization: {}\r\n\r\n{{",
        ALICE.1
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let began = Instant::now();
    let (mut from, mut to) = stream.split();
    let trickle = async {
        while to.write_all(b" ").await.is_ok() {
            sleep(Duration::from_millis(100)).await;
        }
    };
    let mut answer = [0; 64];
    let answered = async { from.read(&mut answer).await.unwrap_or(0) };
    let got = tokio::select! {
        got = answered => got,
        () = trickle => 0,
        () = sleep(Duration::from_secs(15)) => panic!("it still reads"),
    };
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    let answer = String::from_utf8_lossy(&answer[..got]).into_owned();
    assert!(got == 0 || answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[tokio::test]
async fn a_large_message_that_trickles_in_is_closed() {
    let options = RingOptions::nodes(1).setting("upgrade_timeout", "\"1s\"");
    let ring = Ring::start(options).await;
    let socket = Ws::open(&ring.node(0).url("/rooms/trickle"), &[ALICE]).await;
    let began = Instant::now();
    let mut socket = socket
        .raw(async |stream: &mut TcpStream| {
            let mut frame = vec![0x82, 0xff];
            frame.extend((1_u64 << 20).to_be_bytes());
            frame.resize(100 << 10, 0);
            // More is kept of it than is free; then it comes byte by byte.
            stream.write_all(&frame).await.unwrap();
            for _ in 0..15 {
                sleep(Duration::from_millis(100)).await;
                stream.write_all(&[0]).await.ok();
            }
        })
        .await;
    let end = socket.next_within(Duration::from_secs(8)).await;
    assert!(matches!(end, crate::support::Received::Close(1008, _)), "{end:?}");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[tokio::test]
async fn heads_without_end_are_refused_and_cost_no_memory() {
    let ring = Ring::start(RingOptions::nodes(1)).await;
    let node = ring.node(0);
    let attack = async {
        let mut attackers = JoinSet::new();
        for _ in 0..100 {
            let mut stream = connect(node).await;
            attackers.spawn(async move {
                let line = format!("x-long: {}\r\n", "y".repeat(8000));
                let mut refused =
                    stream.write_all(b"GET /rooms/a HTTP/1.1\r\nhost: x\r\n").await.is_err();
                for _ in 0..2000 {
                    refused |= stream.write_all(line.as_bytes()).await.is_err();
                    if refused {
                        break;
                    }
                }
                refused
            });
        }
        attackers.join_all().await
    };
    let refused = others_notice_nothing(node, attack).await;
    assert!(refused.into_iter().all(|refused| refused), "16 MB of head were read");
}

#[tokio::test]
async fn a_flood_of_pings_of_clients_that_read_nothing_holds_up_nobody() {
    let ring = Ring::start(RingOptions::nodes(1).setting("write_timeout", "\"2s\"")).await;
    let node = ring.node(0);
    let attack = async {
        let mut attackers = JoinSet::new();
        for n in 0..8 {
            let socket = Ws::open(&node.url(&format!("/rooms/flood-{n}")), &[ALICE]).await;
            attackers.spawn(async move {
                let mut dropped = false;
                socket
                    .raw(async |stream: &mut TcpStream| {
                        // Masked with zeros: 125 bytes each.
                        let mut ping = vec![0x89, 0xfd, 0, 0, 0, 0];
                        ping.extend([b'p'; 125]);
                        let flood = ping.repeat(500);
                        let flooding = async { while stream.write_all(&flood).await.is_ok() {} };
                        dropped = timeout(DROPPED, flooding).await.is_ok();
                    })
                    .await;
                dropped
            });
        }
        attackers.join_all().await
    };
    let dropped = others_notice_nothing(node, attack).await;
    assert!(dropped.into_iter().all(|dropped| dropped), "who does not read is dropped");
}

#[tokio::test]
async fn a_flood_of_connections_is_refused_in_words_and_leaves_no_trace() {
    let ring = Ring::start(RingOptions::nodes(1).setting("max_clients", 64)).await;
    let node = ring.node(0);
    let mut held = Ws::open(&node.url("/rooms/held"), &[ALICE]).await;
    let mut crowd = Vec::new();
    let mut refused = 0;
    for n in 0..600 {
        let path = format!("/rooms/crowd-{}", n % 8);
        match Ws::connect(&node.url(&path), &[ALICE]).await {
            Ok(socket) => crowd.push(socket),
            Err(refusal) => {
                refused += 1;
                assert_eq!(refusal.status, 503, "{refusal:?}");
                assert!(refusal.retry_after().is_some(), "{refusal:?}");
            }
        }
    }
    assert!(crowd.len() <= 63 && refused >= 537, "{} open, {refused} refused", crowd.len());
    held.text("still here").await;
    assert_eq!(held.expect_text().await, "still here");
    drop(crowd);
    crate::support::eventually("there is room again", Duration::from_secs(20), async || {
        Ws::connect(&node.url("/rooms/after"), &[ALICE]).await.ok()
    })
    .await;
}

/// Whatever a client says, ringspan connects to what its configuration names. The other
/// place that requests name here hears of none.
#[tokio::test]
async fn no_word_of_a_client_leads_to_another_upstream() {
    let ring = Ring::start(RingOptions::nodes(1)).await;
    let node = ring.node(0);
    let canary = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let elsewhere = canary.local_addr().unwrap();
    let heard = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&heard);
    let listening = tokio::spawn(async move {
        while let Ok((stream, _)) = canary.accept().await {
            counting.fetch_add(1, Relaxed);
            drop(stream);
        }
    });
    let targets = [
        format!("http://{elsewhere}/v1/models"),
        format!("//{elsewhere}/v1/models"),
        format!("/v1/models?url=http://{elsewhere}/&host={elsewhere}"),
        format!("/v1//{elsewhere}/models"),
        format!("/v1/@{elsewhere}/models"),
        format!("/v1/models#@{elsewhere}"),
        format!("/v1/..//{elsewhere}"),
        format!("/v1/%2f%2f{elsewhere}%2fmodels"),
        format!("/rooms/{elsewhere}"),
        format!("/rooms/..%2f..%2f{elsewhere}"),
        format!("http://{elsewhere}/rooms/a?last_seq=0"),
        format!("ws://{elsewhere}/rooms/a"),
    ];
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                   sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for target in &targets {
        for (method, headers) in [("GET", ""), ("GET", upgrade), ("POST", ""), ("CONNECT", "")] {
            let target = if method == "CONNECT" { elsewhere.to_string() } else { target.clone() };
            let host = if headers.is_empty() { elsewhere.to_string() } else { "ring".into() };
            let request = format!(
                "{method} {target} HTTP/1.1\r\nhost: {host}\r\nx-forwarded-host: {elsewhere}\r\n\
                 forwarded: host={elsewhere}\r\nx-upstream: {elsewhere}\r\n\
                 origin: http://{elsewhere}\r\nreferer: http://{elsewhere}/\r\n\
                 authorization: {}\r\n{headers}content-length: 0\r\n\r\n",
                ALICE.1
            );
            let mut stream = connect(node).await;
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = [0; 512];
            let got = timeout(Duration::from_secs(10), stream.read(&mut answer)).await;
            let got = got.expect("an answer").unwrap_or(0);
            let answer = String::from_utf8_lossy(&answer[..got]);
            let redirected =
                answer.lines().any(|line| line.to_lowercase().starts_with("location:"));
            assert!(!redirected, "{method} {target}: {answer}");
        }
    }
    assert_eq!(heard.load(Relaxed), 0, "something was sent where a client said");
    listening.abort();
}

/// What all clients together may hold of messages that have not ended, and a little.
const UNFINISHED: u64 = 400 << 20;

#[tokio::test]
async fn messages_and_bodies_that_are_never_finished_cost_bounded_memory_and_are_refused() {
    const LARGE: usize = 15 << 20;
    let ring = Ring::start(RingOptions::nodes(1)).await;
    let node = ring.node(0);
    let before = node.process().resident_bytes().unwrap();
    let mut attackers = JoinSet::new();
    for n in 0..40 {
        let url = node.url("/rooms/unfinished");
        let mut stream = connect(node).await;
        attackers.spawn(async move {
            let mut head = vec![0x82, 0xff];
            head.extend((LARGE as u64 + 1).to_be_bytes());
            head.extend([0; 4]);
            let body = format!(
                "POST /v1/responses HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\
                 authorization: {}\r\n\r\n",
                LARGE + 1,
                ALICE.1
            );
            let unfinished = async |stream: &mut TcpStream, head: &[u8]| {
                stream.write_all(head).await.ok();
                // A node that refuses may not read on.
                timeout(PROMPT, stream.write_all(&vec![b' '; LARGE])).await.ok();
            };
            if n % 2 == 0 {
                unfinished(&mut stream, body.as_bytes()).await;
                let mut answer = [0; 512];
                let got = timeout(PROMPT, stream.read(&mut answer)).await;
                let got = got.map_or(0, |got| got.unwrap_or(0));
                let answer = String::from_utf8_lossy(&answer[..got]).into_owned();
                assert!(got == 0 || answer.starts_with("HTTP/1.1 503"), "{answer}");
                assert!(got == 0 || answer.contains("retry-after"), "{answer}");
                (usize::from(got > 0), 0, Err(stream))
            } else {
                let socket = Ws::open(&url, &[ALICE]).await;
                let mut socket = socket
                    .raw(async |stream: &mut TcpStream| unfinished(stream, &head).await)
                    .await;
                let end = socket.next_within(PROMPT).await;
                let refused = matches!(end, crate::support::Received::Close(1013, _));
                (0, usize::from(refused), Ok(socket))
            }
        });
    }
    // All of them stay, refused or not.
    let heard = attackers.join_all().await;
    let grown = node.process().resident_bytes().unwrap().saturating_sub(before);
    let (bodies, messages) =
        heard.iter().fold((0, 0), |(bodies, messages), it| (bodies + it.0, messages + it.1));
    println!("{bodies} bodies and {messages} messages refused; {} MiB more memory", grown >> 20);
    assert!(bodies > 0 && messages > 0, "{bodies} bodies, {messages} messages");
    assert!(grown < UNFINISHED, "{grown} bytes");
    drop(heard);
    crate::support::eventually("there is room again", Duration::from_secs(20), async || {
        let mut socket = Ws::open(&node.url("/rooms/after"), &[ALICE]).await;
        let large = "x".repeat(LARGE);
        (socket.text_or_gone(large.clone()).await && socket.expect_text().await == large)
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn small_bodies_that_say_to_become_gigabytes_cost_a_node_next_to_nothing() {
    let ring = Ring::start(RingOptions::nodes(1)).await;
    let node = ring.node(0);
    // A window of 16 GiB, and 128 KiB in each four bytes.
    let header = b"\x28\xb5\x2f\xfd\0\xc0";
    let window = [&header[..], &b"\x02\0\x10 ".repeat(16 * 1024)].concat();
    // A window of 8 MiB, and in one block 60,000 matches of 65,539 bytes, in two bytes each.
    let header = b"\x28\xb5\x2f\xfd\0\x68\x40\0\0        ";
    let matches = [&b"\x08a\xff\x60\x6b\x54\0\0\x34"[..], &[0].repeat(120_000), &[1]].concat();
    let head = (matches.len() << 3 | 0b101).to_le_bytes();
    let block = [&header[..], &head[..3], &matches].concat();
    let before = node.process().peak_bytes().unwrap();
    let attack = async {
        let mut attackers = JoinSet::new();
        for n in 0..16 {
            let (body, status) = if n % 2 == 0 { (&window, "413") } else { (&block, "400") };
            let body = body.clone();
            let mut stream = connect(node).await;
            attackers.spawn(async move {
                let head = format!(
                    "POST /v1/responses HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
                     content-encoding: zstd\r\ncontent-length: {}\r\nauthorization: {}\r\n\r\n",
                    body.len(),
                    ALICE.1
                );
                stream.write_all(head.as_bytes()).await.unwrap();
                stream.write_all(&body).await.unwrap();
                let answer = rest(&mut stream, Duration::from_secs(20)).await.unwrap();
                let answer = String::from_utf8_lossy(&answer).into_owned();
                assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
            });
        }
        attackers.join_all().await;
    };
    others_notice_nothing(node, attack).await;
    let grown = node.process().peak_bytes().unwrap() - before;
    println!("{} MiB more at its peak", grown >> 20);
    assert!(grown < MEMORY, "{grown} bytes");
}
