//! Two of three nodes that die at the same moment: the owners of sessions and their heirs.

use super::{PACE, Told, brisk, crowd, judge, until_recovered};
use crate::{
    continuity_database::kept,
    support::{RingOptions, checker::Conduct, trial::Trial},
};

/// Each two of three, one pair after another; of some sessions they are owner and heir.
async fn pairs(fault: &str, options: RingOptions) -> Told {
    let trial = Trial::start(options, 0).await;
    let crowd = crowd(&trial, PACE).await;
    for survivor in &trial.ring.nodes {
        let struck = trial.ring.others(survivor);
        let mark = trial.audit.mark().await;
        tokio::join!(struck[0].kill9(), struck[1].kill9());
        trial.until_deaths_since(mark, 2).await;
        // The survivor serves alone, with what it has.
        crowd.until_each(1).await;
        for node in struck {
            node.start();
        }
        until_recovered(&trial, &crowd).await;
    }
    judge(fault, &trial, crowd, Conduct::Losses).await
}

/// What was in the memory of both is lost, and said to be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: ./test.sh faults"]
async fn owner_and_heir_killed_at_once_double_nothing() {
    let told = pairs("owner and heir killed at once", brisk(3)).await;
    assert!(told.forgotten > 0, "no conversation lost its owner and its heir at once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: ./test.sh faults"]
async fn owner_and_heir_killed_at_once_lose_no_conversation_that_the_database_has() {
    let fault = "owner and heir killed at once, conversations in the database";
    let told = pairs(fault, kept(brisk(3))).await;
    assert_eq!(told.forgotten, 0, "conversations were forgotten");
}
