//! The real clients, against a ring of three behind a balancer.

use crate::support::{
    Ring, RingOptions,
    history::History,
    real::{codex, npm, python, run, script},
};

async fn judge(ring: &Ring) {
    let history = History::read(&ring.sample_url).await;
    assert!(!history.creates().is_empty());
    history.assert_one_connection_each();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn codex_exec_works_by_websocket_and_by_sse() {
    let Some(npm) = npm().await else { return };
    let ring = Ring::start(RingOptions::nodes(3)).await;
    let balancer = ring.balancer().await;
    let base = format!("{}/v1", balancer.url);
    let args = [base.as_str(), "--codex", &codex(&npm)];
    let summary = run("python3".as_ref(), &npm, &script("codex_exec.py"), &args).await;
    for transport in ["websocket", "sse"] {
        assert_eq!(summary[transport]["failures"], serde_json::json!([]), "{summary}");
        assert_eq!(summary[transport]["visible_errors"], serde_json::json!([]), "{summary}");
    }
    judge(&ring).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn codex_app_server_shows_no_error_over_many_turns() {
    let Some(npm) = npm().await else { return };
    let ring = Ring::start(RingOptions::nodes(3)).await;
    let balancer = ring.balancer().await;
    let base = format!("{}/v1", balancer.url);
    let command = codex(&npm);
    let by_websocket = [base.as_str(), "--codex", &command, "--turns", "30"];
    let by_sse = [&by_websocket[..], &["--sse"]].concat();
    for args in [&by_websocket[..], &by_sse] {
        let summary = run("python3".as_ref(), &npm, &script("codex_app_server.py"), args).await;
        assert_eq!(summary["visible_errors"], 0, "{summary}");
        assert_eq!(summary["restarted_answers"], 0, "{summary}");
        assert_eq!(summary["failures"], serde_json::json!([]), "{summary}");
    }
    judge(&ring).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn codex_shows_no_error_while_every_node_is_replaced() {
    let Some(npm) = npm().await else { return };
    let ring = Ring::start(RingOptions::nodes(3)).await;
    let balancer = ring.balancer().await;
    let base = format!("{}/v1", balancer.url);
    let command = codex(&npm);
    let args = [
        base.as_str(),
        "--codex",
        &command,
        "--turns",
        "12",
        "--pause",
        "0.7",
        "--prompt",
        "[deltas=20] [delay=20ms]",
    ];
    let script = script("codex_app_server.py");
    let talking = run("python3".as_ref(), &npm, &script, &args);
    let rolling = async {
        for node in &ring.nodes {
            node.sigterm();
            assert_eq!(node.wait_exit(ring.options.timing.drain()).await, 0, "{}", node.log());
            node.restart().await;
            ring.until_whole().await;
        }
    };
    let (summary, ()) = tokio::join!(talking, rolling);
    assert_eq!(summary["visible_errors"], 0, "{summary}");
    assert_eq!(summary["restarted_answers"], 0, "{summary}");
    judge(&ring).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openai_for_python_works() {
    let Some(python) = python().await else { return };
    let ring = Ring::start(RingOptions::nodes(3)).await;
    let balancer = ring.balancer().await;
    let base = format!("{}/v1", balancer.url);
    let script = script("openai_python.py");
    let summary = run(&python, python.parent().unwrap(), &script, &[&base]).await;
    assert_eq!(summary["failures"], serde_json::json!({}), "{summary}");
    assert_eq!(summary["passed"], summary["checks"], "{summary}");
    judge(&ring).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openai_for_node_works() {
    let Some(npm) = npm().await else { return };
    let ring = Ring::start(RingOptions::nodes(3)).await;
    let balancer = ring.balancer().await;
    let base = format!("{}/v1", balancer.url);
    let script = script("openai_node.mjs");
    let summary = run("node".as_ref(), &npm, &script, &[&base]).await;
    assert_eq!(summary["failures"], serde_json::json!({}), "{summary}");
    assert_eq!(summary["passed"], summary["checks"], "{summary}");
    judge(&ring).await;
}
