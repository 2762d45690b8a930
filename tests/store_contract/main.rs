//! One suite of promises, run against every store. What holds here is what the rest of
//! ringspan may rely on.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking and reports by printing"
)]

mod aliases;
mod claims;
mod conversations;
mod differential;
mod given_up;
mod handoff;
mod measure;
mod members;
#[path = "../support/postgres.rs"]
mod postgres_server;
mod quotas;
mod restarts;
mod ring;
mod schema;
mod turns;

/// Makes a test of each case for each backend.
macro_rules! contract {
    ($($module:ident: $($case:ident)*;)*) => {
        mod memory {$($(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                crate::$module::$case(crate::ring::Ring::memory()).await;
            }
        )*)*}
        mod sqlite {$($(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                crate::$module::$case(crate::ring::Ring::sqlite().await).await;
            }
        )*)*}
        mod postgres {$($(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                crate::$module::$case(crate::ring::Ring::postgres().await).await;
            }
        )*)*}
    };
}

contract! {
    members:
        a_node_registers_joins_drains_and_leaves
        a_node_id_has_one_living_holder
        an_expired_holder_keeps_its_node_id_until_it_is_declared_dead
        a_superseded_holder_of_a_node_id_is_dead_at_once
        of_concurrent_first_starts_one_wins
        death_is_one_way_and_fences_the_heartbeat
        an_expired_lease_can_be_renewed_until_someone_declares_death
        a_lease_that_was_renewed_is_not_the_one_that_was_judged
        a_living_lease_cannot_be_declared_dead_without_proof
        the_ring_version_moves_with_members_and_not_with_heartbeats
        leaving_counts_sessions_and_succeeds_without
        the_ring_shows_the_dead_only_while_a_session_names_them
        a_hint_follows_a_membership_change
        an_unknown_incarnation_is_fenced_everywhere;
    claims:
        of_many_claimants_of_a_new_session_one_wins
        of_many_claimants_of_an_orphan_one_wins
        epochs_are_unique_and_grow
        a_call_that_is_dropped_half_way_leaves_the_store_usable
        a_claim_needs_the_epoch_that_the_row_has
        a_takeover_waits_for_the_owners_death
        a_member_with_an_expired_lease_claims_nothing
        a_draining_member_claims_nothing
        an_owner_reclaims_its_session_under_a_higher_epoch
        a_session_of_another_principal_is_never_handed_out
        a_released_session_is_claimed_from_nobody
        sessions_are_listed_by_owner_and_label_in_order;
    handoff:
        a_stale_epoch_changes_nothing
        a_transfer_moves_owner_and_epoch_together
        a_transfer_needs_an_active_heir
        a_transfer_needs_a_quiescent_session
        a_session_can_be_transferred_to_oneself
        a_quiesced_session_resumes;
    conversations:
        parts_are_given_back_in_order_to_every_node
        a_whole_part_takes_the_place_of_all_before_it_and_of_no_later_owners
        a_part_that_comes_twice_stays_as_it_was
        a_session_without_an_owner_keeps_no_new_part
        a_closed_session_takes_its_conversation_with_it
        a_close_that_is_fenced_deletes_nothing
        a_sweep_takes_the_conversations_that_nobody_serves;
    aliases:
        an_alias_is_seen_by_its_principal_alone
        an_alias_moves_to_the_newer_session
        the_last_of_equal_aliases_in_a_batch_counts
        a_sweep_takes_what_ended_and_spares_what_is_named
        a_sweep_gets_past_aliases_that_have_to_stay
        what_a_keyed_turn_was_found_by_stays_as_long_as_the_turn
        a_session_that_is_retired_is_swept_sooner
        an_epoch_outlives_the_row_that_held_it;
    turns:
        a_turn_is_begun_by_the_owner_in_its_epoch_alone
        a_batch_is_answered_in_its_order
        a_key_names_one_turn_of_its_session
        a_turn_that_ended_stays_as_it_ended
        a_takeover_makes_open_turns_unknown
        only_what_stores_nothing_and_named_no_response_runs_again_by_its_key
        what_failed_before_it_named_a_response_runs_again_by_its_key
        a_transfer_waits_for_open_turns_unless_it_is_forced
        a_transfer_moves_a_session_whose_turns_ended
        turns_go_with_their_session_and_with_time
        a_turn_begun_while_the_session_changes_hands_is_fenced_or_unknown;
    quotas:
        a_principal_has_as_many_sessions_as_it_may_and_no_more
        of_many_claims_for_the_last_places_no_more_win_than_there_are
        sessions_of_the_dead_leave_room_and_count_again_when_they_are_taken_over
        a_full_principal_still_learns_who_owns_its_sessions
        turns_of_all_nodes_count_together
        of_many_turns_for_the_last_places_no_more_are_admitted_than_there_are
        turns_of_a_dead_node_count_no_more_and_are_swept
        turns_begin_at_their_pace_after_a_burst
        of_many_turns_at_once_no_more_than_the_burst_are_admitted;
}
