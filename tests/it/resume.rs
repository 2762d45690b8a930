//! A client that comes back gets what it missed, or is told that it cannot.

use std::time::Duration;

use crate::support::{ALICE, Received, Ring, RingOptions, Ws, eventually};

const SECONDS: Duration = Duration::from_secs(10);

/// Sends messages `from..to`, and reads their echoes.
async fn exchange(client: &mut Ws, from: usize, to: usize) {
    for n in from..to {
        client.text(format!("message {n}")).await;
    }
    for n in from..to {
        assert_eq!(client.expect_text().await, format!("message {n}"));
    }
}

#[tokio::test]
async fn a_client_that_reconnects_on_another_node_gets_exactly_the_rest() {
    let ring = Ring::start(RingOptions::nodes(2)).await;
    let url = |node: usize, rest: &str| ring.node(node).url(&format!("/rooms/resumed{rest}"));
    let mut first = Ws::open(&url(0, ""), &[ALICE]).await;
    assert_eq!(first.header("ringspan-resume"), "new");
    exchange(&mut first, 1, 51).await;
    let session = first.header("ringspan-session").to_owned();
    let epoch = first.header("ringspan-epoch").to_owned();
    assert!(!session.is_empty() && !epoch.is_empty(), "{:?}", first.headers);
    drop(first);

    // By query, then by header.
    let mut by_query = Ws::open(&url(1, "?last_seq=30"), &[ALICE]).await;
    let mut by_header = Ws::open(&url(0, ""), &[ALICE, ("ringspan-last-seq", "45")]).await;
    for (client, seen) in [(&mut by_query, 30), (&mut by_header, 45)] {
        assert_eq!(client.header("ringspan-resume"), "ok");
        assert_eq!(client.header("ringspan-session"), session);
        assert_eq!(client.header("ringspan-epoch"), epoch);
        for n in seen + 1..51 {
            assert_eq!(client.expect_text().await, format!("message {n}"));
        }
    }
    exchange(&mut by_query, 51, 60).await;
    for n in 51..60 {
        assert_eq!(by_header.expect_text().await, format!("message {n}"));
    }
}

#[tokio::test]
async fn what_the_upstream_says_while_nobody_is_there_is_kept() {
    const FRAMES: usize = 200;
    let ring = Ring::start(RingOptions::nodes(2)).await;
    let path = format!("/stream?session=away&frames={FRAMES}&bytes=16&delay_ms=5");
    let mut seen = 0;
    // Each visit takes some frames and leaves without a word.
    for visit in 0..4 {
        let url = ring.node(visit % 2).url(&format!("{path}&last_seq={seen}"));
        let mut client = Ws::open(&url, &[ALICE]).await;
        let wanted = if visit == 3 { FRAMES } else { seen + 20 };
        while seen < wanted {
            let text = client.expect_text().await;
            assert_eq!(text.trim_end_matches('.'), seen.to_string());
            seen += 1;
        }
    }
}

#[tokio::test]
async fn a_client_that_was_away_for_too_long_is_told_of_the_gap() {
    let ring = Ring::start(RingOptions::nodes(2).setting("replay_bytes", "\"4KiB\"")).await;
    let url = ring.node(0).url("/rooms/gap");
    let mut first = Ws::open(&url, &[ALICE]).await;
    // One by one, so that the log is trimmed message by message.
    for n in 1..=1000 {
        exchange(&mut first, n, n + 1).await;
    }
    drop(first);
    let mut late = Ws::open(&ring.node(1).url("/rooms/gap?last_seq=10"), &[ALICE]).await;
    let resume = late.header("ringspan-resume").to_owned();
    let floor = resume.strip_prefix("gap; floor=").unwrap_or_else(|| panic!("{resume:?}"));
    let floor: usize = floor.parse().unwrap();
    assert!((11..=1000).contains(&floor), "{resume}");
    for n in floor..=1000 {
        assert_eq!(late.expect_text().await, format!("message {n}"));
    }
    // Within the floor there is no gap.
    let recent = format!("/rooms/gap?last_seq={}", floor - 1);
    let recent = Ws::open(&ring.node(0).url(&recent), &[ALICE]).await;
    assert_eq!(recent.header("ringspan-resume"), "ok");
}

#[tokio::test]
async fn a_number_that_never_was_is_a_gap() {
    let ring = Ring::start(RingOptions::nodes(1)).await;
    let mut client = Ws::open(&ring.node(0).url("/rooms/never"), &[ALICE]).await;
    exchange(&mut client, 1, 4).await;
    let other = Ws::open(&ring.node(0).url("/rooms/never?last_seq=77"), &[ALICE]).await;
    let resume = other.header("ringspan-resume");
    assert!(resume.starts_with("gap; floor="), "{resume:?}");
}

#[tokio::test]
async fn a_session_ends_some_time_after_its_last_client() {
    let mut options = RingOptions::nodes(2);
    options.tables = concat!(
        "[[route]]\npath = \"/brief\"\nprofile = \"opaque\"\nupstream = \"sample-echo\"\n",
        "session_key = [\"query:session\"]\ndetach_ttl = \"300ms\"\n",
    )
    .to_owned();
    let ring = Ring::start(options).await;
    let url = ring.node(0).url("/brief?session=short");
    let mut client = Ws::open(&url, &[ALICE, ("session-id", "short")]).await;
    exchange(&mut client, 1, 3).await;
    let epoch: i64 = client.header("ringspan-epoch").parse().unwrap();
    client.close(1000, "").await;
    assert!(matches!(client.end().await, Received::Close(1000, _) | Received::Lost(_)));
    eventually("the upstream connection is closed", SECONDS, async || {
        let url = format!("{}/_sample/connections?open=true", ring.sample_url);
        let open = crate::support::http::get(&url, &[]).await.json();
        open["connections"].as_array().unwrap().is_empty().then_some(())
    })
    .await;
    // It is a new one then, and says so.
    let again = Ws::open(&format!("{url}&last_seq=2"), &[ALICE]).await;
    assert!(again.header("ringspan-epoch").parse::<i64>().unwrap() > epoch);
    assert!(again.header("ringspan-resume").starts_with("gap"), "{:?}", again.headers);
}
