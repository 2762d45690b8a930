//! An upstream that fails turns, refuses, falls silent and ends connections, while clients talk and
//! a node restarts.

use std::collections::BTreeMap;

use super::{PACE, brisk};
use crate::{
    roll::seed,
    support::{
        checker::Conduct,
        crowd::{Crowd, Outcome},
        history::History,
        trial::Trial,
    },
};

/// Connections end at this age, whatever runs on them.
const SAMPLE: &[&str] = &["--max-connection-age", "4s", "--cut-at-age"];

const DIRECTIVES: &[&str] = &[
    "[error=server_is_overloaded]",
    "[incomplete]",
    "[fail=400]",
    "[fail=429] [once]",
    "[fail=500]",
    "[fail=503] [once]",
    "[close=1011]",
    "[close=1011] [close_first] [once]",
    "[close=1000] [close_after=3]",
    "[close=0] [close_first]",
    "[reset] [close_after=3]",
    "[reset] [close_first] [once]",
    "[hang]",
];

/// What the upstream has to have done for this to have been a trial.
const MET: [&str; 9] = [
    "completed",
    "incomplete:max_output_tokens",
    "failed:server_is_overloaded",
    "refused:invalid_request",
    "refused:rate_limit_exceeded",
    "refused:server_error",
    "closed",
    "hung",
    "aged",
];

/// How often the upstream ended turns in each way.
async fn endings(trial: &Trial) -> BTreeMap<String, usize> {
    let (_, creates) = History::read(&trial.ring.sample_url).await.facts();
    let mut endings = BTreeMap::new();
    for create in creates {
        *endings.entry(create.outcome).or_insert(0) += 1;
    }
    endings
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: ./test.sh faults"]
async fn an_upstream_that_fails_hangs_and_hangs_up_under_load_is_told_in_its_own_words() {
    let options = brisk(3)
        .sample(SAMPLE)
        .setting("turn_idle_timeout", "\"2500ms\"")
        // The one endpoint fails because it is asked to: it is not to be given up.
        .setting("breaker_failures", 1000);
    let trial = Trial::start(options, 0).await;
    let crowd = Crowd::that_asks(&trial.balancer.url, 24, PACE, seed(), DIRECTIVES);
    crowd.until_each(12).await;
    let victim = trial.ring.node(1);
    victim.sigterm();
    assert_eq!(victim.wait_exit(trial.ring.options.timing.drain()).await, 0, "{}", victim.log());
    crowd.until_each(6).await;
    victim.restart().await;
    trial.ring.until_whole().await;
    crowd.until_each(12).await;
    let outcome = crowd.stop().await;
    let Outcome { turns, hidden, unknown, forgotten, failures, .. } = &outcome;
    let endings = endings(&trial).await;
    println!(
        "the upstream fails, {turns} turns: {unknown} of unknown outcome, {} failed in its own \
         words; {hidden:?}\n{endings:#?}",
        failures.len()
    );
    for how in MET {
        assert!(endings.contains_key(how), "the upstream never did this: {how}");
    }
    let gave_up: Vec<_> = failures.iter().filter(|why| why.contains("gave up: ")).collect();
    assert!(gave_up.is_empty(), "{gave_up:#?}");
    assert_eq!(*forgotten, 0, "conversations were forgotten");
    trial.judge(Conduct::Upstream, outcome).await.assert_holds();
}
