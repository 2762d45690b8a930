//! Autobahn's fuzzing client against the clients' end of an opaque route, and its fuzzing
//! server against the upstreams' end. The ring has two nodes, so about half of the sessions
//! cross a peer stream as well.

use crate::support::{
    Ring, RingOptions, Store,
    autobahn::{AGENT, Report, Suite, suite},
};

/// All but the cases of size and time (9), and those of compression (12, 13): a minute.
const BRIEF: &[&str] = &["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*"];
/// One of each kind of compression, to see that it is negotiated at all.
const BRIEF_COMPRESSION: &[&str] = &["12.1.1", "12.2.3", "13.1.1", "13.7.1"];
const ALL: &[&str] = &["*"];

fn brief() -> Vec<&'static str> {
    [BRIEF, BRIEF_COMPRESSION].concat()
}

fn judge(side: &str, report: &Report) {
    println!("\nAutobahn, {side} ({AGENT}): {} cases", report.cases());
    println!("| Section | Cases | Outcome |\n|---|---|---|\n{}", report.table());
    for outcome in ["NON-STRICT", "UNIMPLEMENTED"] {
        println!("{outcome}: {}", report.with(outcome).join(" "));
    }
    assert_eq!(report.failures(), [""; 0], "{side}");
}

/// Two nodes, with compression offered on both sides, and a route to the fuzzing server.
fn options(server: u16) -> RingOptions {
    let mut options = RingOptions::nodes(2).store(Store::Sqlite);
    options.tables = format!(
        r#"
[[route]]
path = "/squeezed"
profile = "opaque"
upstream = "sample-echo"
compression = true

[[upstream]]
name = "fuzzing-server"
url = "ws://127.0.0.1:{server}"
compression = true

[[route]]
path = "/runCase"
profile = "opaque"
upstream = "fuzzing-server"
"#
    );
    options
}

async fn clients_end(suite: &Suite, cases: &[&str]) -> Report {
    let ring = Ring::start(options(1)).await;
    let url = ring.node(0).url("/squeezed").replacen("http://", "ws://", 1);
    suite.judge_server(&url, cases).await
}

async fn upstreams_end(suite: &Suite, cases: &[&str]) -> Report {
    let server = suite.server(cases).await;
    let ring = Ring::start(options(server.port)).await;
    server.judge_through(&ring.node(0).url("/runCase")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fuzzing_client_finds_no_fault_in_the_clients_end() {
    let Some(suite) = suite().await else { return };
    judge("clients' end", &clients_end(&suite, &brief()).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fuzzing_server_finds_no_fault_in_the_upstreams_end() {
    let Some(suite) = suite().await else { return };
    judge("upstreams' end", &upstreams_end(&suite, &brief()).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "all cases take many minutes: ./test.sh protocols"]
async fn no_case_of_the_fuzzing_client_fails() {
    let Some(suite) = suite().await else { return };
    judge("clients' end", &clients_end(&suite, ALL).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "all cases take many minutes: ./test.sh protocols"]
async fn no_case_of_the_fuzzing_server_fails() {
    let Some(suite) = suite().await else { return };
    judge("upstreams' end", &upstreams_end(&suite, ALL).await);
}
