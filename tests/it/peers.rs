//! Nodes that prove themselves to each other: certificates and tokens, good ones and others.

use std::{fs, path::Path, time::Duration};

use crate::support::{
    ALICE, Node, Ring, RingOptions, Ws,
    certificates::{Authority, Certificate, replace},
    eventually,
};

const RECOVERY: Duration = Duration::from_secs(30);

/// A place for a node with these files instead of a token.
fn node(ring: &Ring, id: &str, certificate: &Certificate, ca: &Path) -> Node {
    ring.extra_node(id)
        .with("RINGSPAN_PEER_TOKEN", "")
        .with("RINGSPAN_PEER_CERT", certificate.cert.to_str().unwrap())
        .with("RINGSPAN_PEER_KEY", certificate.key.to_str().unwrap())
        .with("RINGSPAN_PEER_CA", ca.to_str().unwrap())
}

async fn migrated() -> Ring {
    let ring = Ring::prepare(RingOptions::nodes(0)).await;
    ring.migrate().await;
    ring
}

async fn start(node: &Node) {
    node.start();
    node.until_ready().await;
}

/// Opens rooms at the one and comes back by the other, and the other way round: a room that
/// was opened where it belongs has to be reached across.
async fn assert_reach_each_other(one: &Node, two: &Node, name: &str) {
    for n in 0..16 {
        let path = format!("/rooms/{name}-{n}");
        let (first, second) = if n % 2 == 0 { (one, two) } else { (two, one) };
        let open = async |node: &Node| {
            eventually(&format!("{} reaches {path}", node.id), RECOVERY, async || {
                Ws::connect(&node.url(&path), &[ALICE]).await.ok()
            })
            .await
        };
        let (mut here, there) = (open(first).await, open(second).await);
        assert_eq!(here.header("ringspan-session"), there.header("ringspan-session"));
        here.text("hello").await;
        assert_eq!(here.expect_text().await, "hello");
    }
}

/// Each room is open at the one that owns it, and refused by the other.
async fn assert_apart(one: &Node, two: &Node, name: &str) {
    for n in 0..3 {
        let path = format!("/rooms/{name}-{n}");
        let own = Ws::connect(&one.url(&path), &[ALICE]).await;
        let other = Ws::connect(&two.url(&path), &[ALICE]).await;
        let refused: Vec<_> = [own.err(), other.err()].into_iter().flatten().collect();
        assert!(!refused.is_empty(), "{name}: both reach {path}");
        for refused in refused {
            assert_eq!(refused.status, 503, "{refused:?}");
        }
    }
}

#[tokio::test]
async fn nodes_meet_by_certificates_that_are_renewed_without_a_restart() {
    let ring = migrated().await;
    let (before, after) = (Authority::new(), Authority::new());
    let trusted = ring.dir().join("trusted.pem");
    fs::copy(before.pem(), &trusted).unwrap();
    let own = before.sign("one", "IP:127.0.0.1", 30);
    let one = node(&ring, "one", &own, &trusted);
    let two = node(&ring, "two", &before.sign("two", "IP:127.0.0.1", 30), &trusted);
    start(&one).await;
    start(&two).await;
    assert_reach_each_other(&one, &two, "before").await;
    two.kill9().await;

    // A new authority: its node trusts nothing else.
    after.sign("one", "IP:127.0.0.1", 30).install(&own);
    replace(&after.pem(), &trusted);
    eventually("the new files are taken over", RECOVERY, async || {
        one.log().contains("peer certificates were renewed").then_some(())
    })
    .await;
    let three = node(&ring, "three", &after.sign("three", "IP:127.0.0.1", 30), &after.pem());
    start(&three).await;
    assert_reach_each_other(&one, &three, "after").await;

    // Files that are of no use change nothing.
    fs::write(&own.cert, "no certificate").unwrap();
    eventually("the bad file is told of", RECOVERY, async || {
        one.log().contains("of no use").then_some(())
    })
    .await;
    let four = node(&ring, "four", &after.sign("four", "IP:127.0.0.1", 30), &after.pem());
    start(&four).await;
    assert_reach_each_other(&one, &four, "again").await;
}

#[tokio::test]
async fn a_certificate_of_another_authority_an_expired_one_and_one_of_another_name_are_refused() {
    let ring = migrated().await;
    let (authority, other) = (Authority::new(), Authority::new());
    let one = node(&ring, "one", &authority.sign("one", "IP:127.0.0.1", 30), &authority.pem());
    start(&one).await;
    let strangers = [
        ("foreign", other.sign("foreign", "IP:127.0.0.1", 30)),
        ("expired", authority.sign("expired", "IP:127.0.0.1", -1)),
        ("misnamed", authority.sign("misnamed", "DNS:elsewhere.example", 30)),
    ];
    for (name, certificate) in strangers {
        let stranger = node(&ring, name, &certificate, &authority.pem());
        start(&stranger).await;
        assert_apart(&one, &stranger, name).await;
        stranger.kill9().await;
    }
    // One that is named by its node id is as good as one that is named by its address.
    let certificate = authority.sign("by-id", "DNS:by-id,IP:127.0.0.1", 30);
    let by_id = node(&ring, "by-id", &certificate, &authority.pem());
    start(&by_id).await;
    assert_reach_each_other(&one, &by_id, "by-id").await;
}

#[tokio::test]
async fn connections_that_say_nothing_keep_no_peer_out() {
    let ring = migrated().await;
    let authority = Authority::new();
    let certificate = |id: &str| authority.sign(id, "IP:127.0.0.1", 30);
    let one = node(&ring, "one", &certificate("one"), &authority.pem());
    let two = node(&ring, "two", &certificate("two"), &authority.pem());
    start(&one).await;
    start(&two).await;
    let mut silent = Vec::new();
    for _ in 0..700 {
        silent.push(tokio::net::TcpStream::connect(&one.peer).await.unwrap());
        silent.push(tokio::net::TcpStream::connect(&two.peer).await.unwrap());
    }
    assert_reach_each_other(&one, &two, "beside").await;
    for stream in silent.iter().rev().take(2) {
        let said = stream.try_read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(said, Err(std::io::ErrorKind::WouldBlock), "none of them was waited for");
    }
}

#[tokio::test]
async fn a_peer_token_is_replaced_node_by_node() {
    let (old, new) = ("the-old-token-0123456789", "the-new-token-0123456789");
    let ring = migrated().await;
    let token = |id: &str, tokens: &str| {
        let node = ring.extra_node(id);
        node.with("RINGSPAN_PEER_TOKEN", tokens)
    };
    let first = token("first", &format!("{old},{new}"));
    let second = token("second", &format!("{new},{old}"));
    start(&first).await;
    start(&second).await;
    assert_reach_each_other(&first, &second, "both").await;
    first.kill9().await;
    let third = token("third", new);
    start(&third).await;
    assert_reach_each_other(&second, &third, "new").await;
    second.kill9().await;
    let late = token("late", old);
    start(&late).await;
    assert_apart(&third, &late, "late").await;
}
