//! The real clients while nodes are restarted one after another, again and again. The long
//! forms are run by `./test.sh continuity`.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{
    Node, RingOptions,
    checker::Conduct,
    crowd::Outcome,
    eventually,
    history::History,
    real::{codex, npm, python, run, run_to_end, script},
    trial::Trial,
};

/// How nodes end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Told,
    Killed,
}

/// Runs `talking` to its end while the nodes are restarted in turns, once the sessions are
/// there that all nodes were to share; how often they were.
async fn while_restarting<T>(
    trial: &Trial,
    nodes: &[Node],
    end: End,
    sessions: usize,
    talking: impl Future<Output = T>,
) -> (T, usize) {
    let restarts = AtomicUsize::new(0);
    let restarting = async {
        eventually("the clients have their sessions", Duration::from_mins(1), async || {
            (trial.ring.sessions().await.len() >= sessions).then_some(())
        })
        .await;
        for node in nodes.iter().cycle() {
            match end {
                End::Told => {
                    node.sigterm();
                    let limit = trial.ring.options.timing.drain();
                    assert_eq!(node.wait_exit(limit).await, 0, "{}", node.log());
                }
                End::Killed => {
                    // Killed more often than turns are long, nothing could ever end.
                    until_more_turns(trial, 2).await;
                    node.kill9().await;
                }
            }
            node.restart().await;
            trial.ring.until_whole().await;
            restarts.fetch_add(1, Ordering::Relaxed);
        }
    };
    let talked = tokio::select! {
        talked = talking => talked,
        () = restarting => unreachable!("it goes on and on"),
    };
    (talked, restarts.into_inner())
}

/// Waits until the upstream has completed `count` more turns.
async fn until_more_turns(trial: &Trial, count: usize) {
    let completed = async || {
        let history = History::read(&trial.ring.sample_url).await;
        history.creates().iter().filter(|create| create["outcome"] == "completed").count()
    };
    let target = completed().await + count;
    eventually("the client's turns complete", Duration::from_mins(1), async || {
        (completed().await >= target).then_some(())
    })
    .await;
}

/// `codex app-server` over `turns` turns, every third of which calls a tool.
async fn app_server(turns: usize, end: End) -> Option<(Value, usize)> {
    let npm = npm().await?;
    let trial = Trial::start(RingOptions::nodes(3), 0).await;
    let base = format!("{}/v1", trial.balancer.url);
    let (command, turns) = (codex(&npm), turns.to_string());
    let args = [
        &base,
        "--codex",
        &command,
        "--turns",
        &turns,
        "--pause",
        "0.3",
        "--prompt",
        "[deltas=20] [delay=20ms]",
    ];
    let script = script("codex_app_server.py");
    let talking = run_to_end("python3".as_ref(), &npm, &script, &args);
    let nodes = &trial.ring.nodes;
    let ((_, summary), restarts) = while_restarting(&trial, nodes, end, 1, talking).await;
    let conduct = if end == End::Told { Conduct::Planned } else { Conduct::Losses };
    trial.judge(conduct, Outcome::default()).await.assert_holds();
    println!("{restarts} restarts ({end:?}) under {turns} turns of Codex");
    assert!(restarts > 1, "hardly a roll");
    Some((summary, restarts))
}

async fn codex_does_not_notice(turns: usize) {
    let Some((summary, _)) = app_server(turns, End::Told).await else { return };
    assert_eq!(summary["visible_errors"], 0, "{summary}");
    assert_eq!(summary["restarted_answers"], 0, "{summary}");
    assert_eq!(summary["failures"], json!([]), "{summary}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn codex_does_not_notice_restarts() {
    codex_does_not_notice(9).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: ./test.sh continuity"]
async fn long_codex_does_not_notice_restarts() {
    codex_does_not_notice(45).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: ./test.sh continuity"]
async fn long_codex_gets_every_answer_although_nodes_are_killed() {
    let Some((summary, restarts)) = app_server(36, End::Killed).await else { return };
    println!(
        "{restarts} kills: {} errors shown, {} answers begun anew; {}",
        summary["visible_errors"], summary["restarted_answers"], summary["errors"]
    );
    assert_eq!(summary["answered"], summary["turns"], "{summary}");
    assert_eq!(summary["failures"], json!([]), "{summary}");
}

/// One socket for each conversation, at the one node that stays.
async fn sdk_does_not_notice(name: &str, talks: usize, turns: usize) {
    let sessions = talks;
    let (talks, turns) = (talks.to_string(), turns.to_string());
    let prompt = "[deltas=15] [delay=30ms]";
    let (program, dir, arguments) = if name.starts_with("openai_python") {
        let Some(python) = python().await else { return };
        let dir = python.parent().unwrap().to_owned();
        (python, dir, vec!["--talks", &talks, "--turns", &turns, "--prompt", prompt])
    } else {
        let Some(npm) = npm().await else { return };
        ("node".into(), npm, vec![talks.as_str(), &turns, "200", prompt])
    };
    let trial = Trial::start(RingOptions::nodes(3), 0).await;
    let (edge, others) = trial.ring.nodes.split_first().unwrap();
    let base = edge.url("/v1");
    let args = [&[base.as_str()], &arguments[..]].concat();
    let script = script(name);
    let talking = run(&program, &dir, &script, &args);
    let (summary, restarts) = while_restarting(&trial, others, End::Told, sessions, talking).await;
    assert_eq!(summary["failures"], json!([]), "{summary}");
    assert_eq!(summary["answered"], summary["turns"], "{summary}");
    let moves: usize = trial.moves_since(0).await.iter().sum();
    println!("{restarts} restarts, {moves} moves behind {talks} sockets of {name}");
    assert!(restarts > 0 && moves > 0, "nothing happened behind the sockets");
    trial.judge(Conduct::Planned, Outcome::default()).await.assert_holds();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openai_for_python_keeps_its_one_socket_while_owners_are_restarted() {
    sdk_does_not_notice("openai_python_socket.py", 6, 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openai_for_node_keeps_its_one_socket_while_owners_are_restarted() {
    sdk_does_not_notice("openai_node_socket.mjs", 6, 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: ./test.sh continuity"]
async fn long_openai_for_python_keeps_its_one_socket() {
    sdk_does_not_notice("openai_python_socket.py", 12, 60).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: ./test.sh continuity"]
async fn long_openai_for_node_keeps_its_one_socket() {
    sdk_does_not_notice("openai_node_socket.mjs", 12, 60).await;
}
