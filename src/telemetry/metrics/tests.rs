use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// The names that `interface.md` promises.
const PROMISED: &str = "sessions attached_clients ring_members ring_version lease_remaining_seconds \
    claims_total takeovers_total frames_total frame_bytes_total forwarded_frames_total \
    forward_seconds turns_total turn_first_event_seconds turn_seconds turn_queue_depth \
    replay_buffer_bytes resumes_total handoffs_total handoff_seconds drain_state \
    drain_remaining_sessions upstream_connections upstream_dials_total breaker_state \
    peer_connections peer_rtt_seconds store_seconds store_errors_total not_owner_total \
    slow_clients_total build_info outage_certificate_remaining_seconds store_outage_seconds";

/// Metrics in which every family has a value.
fn touched() -> (Metrics, Vec<GaugeGuard>, GaugeShare) {
    let m = Metrics::new();
    let took = Duration::from_millis(3);
    let guards = vec![
        m.session("/r", Profile::Opaque),
        m.client("/r", Place::Remote),
        m.queued_turn("/r"),
        m.upstream_connection("u"),
        m.peer_connection(Side::Caller),
    ];
    let mut replay = m.replay_bytes("/r");
    replay.set(1_000);
    m.slow_client("/r", Place::Local);
    m.frames("/r", Direction::Up).record(2, 300);
    m.forwarded_frames("/r", Direction::Down).inc();
    m.forward(Outcome::Ok, took);
    m.resume("/r", ResumeOutcome::Gap);
    m.turn("/r", TurnOutcome::Completed, took);
    m.turn_first_event("/r", took);
    m.archived(1, 300);
    m.archive_failure(ArchiveFailure::Read);
    m.conversation_copy(CopyOutcome::Ok);
    m.heir_conversations(3);
    m.ring(7, [MemberState::Active, MemberState::Active, MemberState::Draining]);
    m.claim(ClaimOutcome::Claimed);
    m.takeover(TakeoverReason::Dead);
    m.not_owner(Side::Callee);
    m.handoff(HandoffReason::Drain, HandoffOutcome::Ok, took);
    m.severed(2);
    m.drain(DrainState::HandingOff, 5);
    m.upstream_dial("u", Outcome::Timeout);
    m.breaker("u", "e", BreakerState::Open);
    m.peer_rtt(took);
    m.store("claim", took);
    m.ledger_batch(LedgerWrite::Begin, 3);
    m.ledger_refusal(LedgerRefusal::Unwritten);
    m.quota_refusal(QuotaLimit::TurnRate);
    m.store_error("claim", StoreFailure::Timeout);
    m.error(Code::QueueFull, Blame::Client);
    m.otlp_sent(Signal::Traces).inc();
    m.otlp_lost(Signal::Logs, Loss::NoRoom).inc();
    (m, guards, replay)
}

/// `family -> labels` of an encoded text, read as a scraper would.
fn scrape(text: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let (mut found, mut family) = (BTreeMap::new(), String::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            family = format!("{name}{suffix}");
            found.insert(family.clone(), (kind.to_owned(), BTreeSet::new()));
        } else if !line.starts_with('#') {
            let labels =
                line.split_once('{').map_or("", |(_, rest)| rest.split('}').next().unwrap());
            let names = labels.split("\",").filter_map(|pair| Some(pair.split_once('=')?.0));
            found
                .get_mut(&family)
                .unwrap()
                .1
                .extend(names.filter(|&name| name != "le").map(str::to_owned));
        }
    }
    found
}

#[test]
fn what_is_listed_is_what_is_scraped() {
    let (metrics, _guards, _replay) = touched();
    let scraped = scrape(&metrics.encode());
    let listed: BTreeMap<_, _> = metrics
        .list()
        .into_iter()
        .map(|info| {
            let labels = info.labels.iter().map(|label| (*label).to_owned()).collect();
            (info.name, (info.kind.to_owned(), labels))
        })
        .collect();
    assert_eq!(listed, scraped);
}

#[test]
fn every_promised_metric_is_there_in_base_units() {
    let list = Metrics::new().list();
    let names: BTreeSet<&str> = list.iter().map(|info| &*info.name).collect();
    for name in PROMISED.split_whitespace() {
        assert!(names.contains(&*format!("ringspan_{name}")), "{name} is missing");
    }
    for info in list {
        if let Some(unit) = &info.unit {
            assert!(info.name.trim_end_matches("_total").ends_with(&**unit), "{info:?}");
        }
        assert!(info.help.len() > 10, "{info:?}");
    }
}

#[test]
fn values_are_told_as_they_were_counted() {
    let (metrics, guards, replay) = touched();
    let text = metrics.encode();
    for line in [
        "ringspan_frames_total{route=\"/r\",direction=\"up\"} 2",
        "ringspan_frame_bytes_total{route=\"/r\",direction=\"up\"} 300",
        "ringspan_ring_members{state=\"ACTIVE\"} 2",
        "ringspan_ring_members{state=\"DEAD\"} 0",
        "ringspan_ring_version 7",
        "ringspan_replay_buffer_bytes{route=\"/r\"} 1000",
        "ringspan_sessions{route=\"/r\",profile=\"opaque\"} 1",
        "ringspan_drain_remaining_sessions 5",
        "ringspan_errors_total{code=\"queue_full\",blame=\"client\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    drop((guards, replay));
    let text = metrics.encode();
    for line in [
        "ringspan_sessions{route=\"/r\",profile=\"opaque\"} 0",
        "ringspan_replay_buffer_bytes{route=\"/r\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_nobody_renews_is_seen_to_run_out() {
    let metrics = Metrics::new();
    let says = |seconds: &str| {
        let line = format!("ringspan_lease_remaining_seconds {seconds}");
        let text = metrics.encode();
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    };
    metrics.lease_until(Some(Instant::now() + Duration::from_secs(15)));
    says("15.0");
    tokio::time::advance(Duration::from_secs(10)).await;
    says("5.0");
    tokio::time::advance(Duration::from_secs(10)).await;
    says("0.0");
}

#[test]
fn the_table_has_a_line_for_each_metric() {
    let list = Metrics::new().list();
    let table = render_table(&list);
    assert_eq!(table.lines().count(), list.len() + 1);
    assert!(table.contains("ringspan_frames_total"));
}

#[test]
fn a_node_that_did_nothing_yet_has_a_series_for_every_promised_name() {
    for profile in [Profile::Opaque, Profile::Responses] {
        let metrics = Metrics::new();
        metrics.route("/r", profile);
        metrics.upstream("u");
        metrics.breaker("u", "default", BreakerState::Closed);
        let scraped = scrape(&metrics.encode());
        for name in PROMISED.split_whitespace() {
            assert!(scraped.contains_key(&format!("ringspan_{name}")), "{name} is missing");
        }
        // What a route costs a scraper for as long as nothing happens.
        let lines = metrics.encode().lines().filter(|line| line.contains("route=\"/r\"")).count();
        assert!(lines < 70, "{lines} lines");
    }
}

#[test]
fn the_classic_text_says_the_same_samples_under_names_of_series() {
    let (metrics, _guards, _replay) = touched();
    let text = metrics.encode_classic();
    let (mut helped, mut family, mut kind) = ("", "", "");
    let mut seen = BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            helped = rest.split_once(' ').unwrap().0;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            (family, kind) = rest.split_once(' ').unwrap();
            assert_eq!(helped, family);
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(seen.insert(family), "{family} comes twice");
        } else {
            let name = line.split(['{', ' ']).next().unwrap();
            let suffix = name.strip_prefix(family).unwrap_or_else(|| panic!("{family}: {line}"));
            let suffixes =
                if kind == "histogram" { &["_bucket", "_sum", "_count"][..] } else { &[""] };
            assert!(suffixes.contains(&suffix), "{family}: {line}");
        }
    }
    let list = metrics.list();
    assert_eq!(seen, list.iter().map(|info| &*info.name).collect());
    let samples = |text: &str| {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        // What is read from the kernel changes between two looks.
        let ours = lines.filter(|line| line.starts_with("ringspan_"));
        ours.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(samples(&text).len(), samples(&metrics.encode()).len());
    assert!(text.contains("\nringspan_build_info{version="), "{text}");
    assert!(text.contains("\nringspan_slow_clients_total{route=\"/r\",place=\"local\"} 1\n"));
}
