//! What Prometheus finds at a node on its first visit.

use crate::support::{Ring, RingOptions, http};

/// The names that operators are promised, without their prefix.
const PROMISED: &str = "sessions attached_clients ring_members ring_version \
    lease_remaining_seconds claims_total takeovers_total frames_total frame_bytes_total \
    forwarded_frames_total forward_seconds turns_total turn_first_event_seconds turn_seconds \
    turn_queue_depth replay_buffer_bytes resumes_total handoffs_total handoff_seconds drain_state \
    drain_remaining_sessions upstream_connections upstream_dials_total breaker_state \
    peer_connections peer_rtt_seconds store_seconds store_errors_total not_owner_total \
    slow_clients_total";

#[tokio::test]
async fn a_single_node_that_nobody_has_used_tells_every_promised_metric() {
    let ring = Ring::start(RingOptions::nodes(1)).await;
    let url = format!("{}/metrics", ring.nodes[0].admin_url);
    for accept in ["text/plain;version=0.0.4", "application/openmetrics-text;version=1.0.0"] {
        let answer = http::get(&url, &[("accept", accept)]).await;
        let kind = answer.headers["content-type"].to_str().unwrap();
        assert!(kind.starts_with(accept.split(';').next().unwrap()), "{accept}: {kind}");
        let text = answer.text();
        for name in PROMISED.split_whitespace() {
            // A histogram has no series of its own name.
            let series = [name.to_owned(), format!("{name}_count")];
            let is_there = text.lines().any(|line| {
                let name = line.split(['{', ' ']).next().unwrap().strip_prefix("ringspan_");
                name.is_some_and(|name| series.iter().any(|series| series == name))
            });
            assert!(is_there, "{name} is not in\n{text}");
        }
    }
}
