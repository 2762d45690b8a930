//! What clients that do harm cost a node and its other clients, in figures: `./test.sh overload`
//! prints the table. `RINGSPAN_BIN` names another binary than the one built with the tests.

mod attackers;
mod regulars;

use std::time::Duration;

use attackers::{Attack, Refusals};
use regulars::{Latencies, Regulars};
use tokio::time::sleep;

use crate::support::{Ring, RingOptions, eventually, process::Held};

/// How long the regular clients are watched alone.
const ALONE: Duration = Duration::from_secs(5);
/// When memory is looked at again after an attack.
const AFTER: Duration = Duration::from_secs(2);
/// How long what an attack leaves behind may stay.
const CLEARED: Duration = Duration::from_mins(1);
/// How often the node is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Longest that a regular client may wait for an answer, beside any attack, on a busy machine.
const PROMPT: Duration = Duration::from_secs(5);
/// What any attack may cost a node.
const MEMORY: u64 = 512 << 20;

/// Streams whose sessions do not outlive their clients: a session that is left reads on, as
/// fast as its upstream speaks.
const ENDLESS: &str = r#"
[[upstream]]
name = "endless"
url = "ws://{sample}/stream"
[[route]]
path = "/endless"
profile = "opaque"
upstream = "endless"
session_key = ["query:session"]
detach_ttl = "0s"
"#;

/// One line of the table.
struct Row {
    what: &'static str,
    closes: usize,
    before: Held,
    peak: Held,
    after: Held,
    refusals: Refusals,
    echoes: Latencies,
    turns: Latencies,
    failed: usize,
}

impl Row {
    const HEAD: &str = "| Beside | MiB before, peak, after | Descriptors before, peak, after \
        | Refused, with `Retry-After` | Closed | Echo p50, p99 | First event p50, p99 | Failed |\n\
        |---|---|---|---|---|---|---|---|";

    fn print(&self) -> String {
        let Self { what, before, peak, after, refusals, echoes, turns, failed, .. } = self;
        let [before_mib, peak_mib, after_mib] = [before, peak, after].map(|it| it.resident >> 20);
        let Refusals { refused, advised, closed } = refusals;
        format!(
            "| {what} | {before_mib}, {peak_mib}, {after_mib} | {}, {}, {} | {refused}, {advised} \
             | {closed} | {echoes} | {turns} | {failed} |",
            before.descriptors, peak.descriptors, after.descriptors
        )
    }
}

/// Lets the attack go on beside the regular clients.
async fn measure(ring: &Ring, regulars: &Regulars, attack: &Attack) -> Row {
    let node = ring.node(0);
    let before = node.process().held();
    regulars.take();
    let mut peak = before;
    let mut going_on = std::pin::pin!(attack.run(ring));
    let refusals = loop {
        tokio::select! {
            refusals = going_on.as_mut() => break refusals,
            () = sleep(LOOK) => {}
        }
        let now = node.process().held();
        peak.resident = peak.resident.max(now.resident);
        peak.descriptors = peak.descriptors.max(now.descriptors);
    };
    let (echoes, turns, failed) = regulars.take();
    // Sessions stay for a time without clients: they hold their upstream connection.
    let room = before.descriptors + attack.leaves();
    eventually("what the attack opened is closed", CLEARED, async || {
        (node.process().held().descriptors <= room).then_some(())
    })
    .await;
    sleep(AFTER).await;
    let (what, closes) = (attack.name(), attack.closes());
    Row {
        what,
        closes,
        before,
        peak,
        after: node.process().held(),
        refusals,
        echoes,
        turns,
        failed,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "figures: ./test.sh overload"]
async fn clients_that_do_harm_cost_bounded_memory_and_regular_ones_no_answer() {
    let mut options = RingOptions::nodes(2)
        .setting("max_clients", 2000)
        .setting("upgrade_timeout", "\"3s\"")
        .setting("write_timeout", "\"3s\"")
        .setting("turns_per_principal", 16);
    options.tables = ENDLESS.to_owned();
    let ring = Ring::start(options).await;
    let regulars = Regulars::start(&ring.node(0).client_url);
    let mut rows = Vec::new();
    for attack in Attack::ALL {
        println!("beside {}", attack.name());
        rows.push(measure(&ring, &regulars, &attack).await);
        println!("{}", rows.last().unwrap().print());
    }
    regulars.stop();
    println!("{}", Row::HEAD);
    for row in &rows {
        println!("{}", row.print());
    }
    for Row { what, closes, before, peak, echoes, turns, failed, .. } in rows {
        assert!(failed <= closes, "{what}: {failed} failed");
        let cost = peak.resident - before.resident;
        assert!(cost < MEMORY, "{what}: {cost} bytes");
        assert!(echoes.worst() < PROMPT && turns.worst() < PROMPT, "{what}: {echoes}, {turns}");
    }
}
