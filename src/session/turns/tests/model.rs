//! Any order of events, against a small model of the clients and of the upstream.
//!
//! Every create carries a number in its metadata, and every upstream event the number of the
//! create that it is about, so that a log tells at once whether it holds a foreign event.

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap, HashSet},
};

use proptest::{prelude::*, test_runner::TestRunner};

use super::*;
use crate::store::TurnRow;

const LANES: [Option<&str>; 3] = [None, Some("x"), Some("y")];
const QUEUE: usize = 2;

#[derive(Clone, Copy, Debug)]
enum Step {
    Create {
        client: ClientId,
        lane: usize,
        input: u8,
        store: bool,
        chained: bool,
    },
    Leave(ClientId),
    Interrupt {
        client: ClientId,
        lane: usize,
        stale: bool,
    },
    /// An event of a type that neither we nor the upstream know: of this client, or of the one
    /// whose turn runs.
    Other {
        client: Option<ClientId>,
        lane: usize,
    },
    /// What the upstream says, in one batch of up to four events.
    Says([Option<(usize, Say)>; 4]),
    Connect,
    Disconnect,
    /// Of what runs in these lanes.
    Silence([usize; 2]),
    Unreachable,
    /// The ledger answers the oldest turn that waits for it.
    Journaled(Word),
    Fenced,
}

/// What is said of a turn that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Begun,
    /// Without a ledger: its principal may not run it.
    Duplicate,
    Unwritten,
}

#[derive(Clone, Copy, Debug)]
enum Say {
    Created,
    /// With or without a response id, as both exist.
    Delta(bool),
    Terminal(&'static str),
    Error,
    Steered,
    /// Of a response that this connection has finished, or that nobody knows.
    Stale(&'static str),
    Foreign(&'static str),
}

fn say() -> impl Strategy<Value = Say> {
    let last = prop::sample::select(vec!["completed", "failed", "incomplete"]);
    let kind = prop::sample::select(vec!["completed", "failed", "incomplete", "output_text.delta"]);
    prop_oneof![
        4 => Just(Say::Created),
        4 => any::<bool>().prop_map(Say::Delta),
        4 => last.prop_map(Say::Terminal),
        2 => Just(Say::Error),
        1 => Just(Say::Steered),
        2 => kind.clone().prop_map(Say::Stale),
        1 => kind.prop_map(Say::Foreign),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let create = (1..4u32, 0..3usize, 0..3u8, prop::bool::weighted(0.2), prop::bool::weighted(0.2))
        .prop_map(|(client, lane, input, store, chained)| Step::Create {
            client,
            lane,
            input,
            store,
            chained,
        });
    let says = prop::array::uniform4(prop::option::of((0..3usize, say())));
    let interrupt = (1..4u32, 0..3usize, any::<bool>())
        .prop_map(|(client, lane, stale)| Step::Interrupt { client, lane, stale });
    let word = prop_oneof![
        8 => Just(Word::Begun),
        1 => Just(Word::Duplicate),
        1 => Just(Word::Unwritten),
    ];
    let other = (prop::option::weighted(0.3, 1..4u32), 0..3usize)
        .prop_map(|(client, lane)| Step::Other { client, lane });
    prop_oneof![
        8 => create,
        4 => other,
        2 => (1..4u32).prop_map(Step::Leave),
        1 => interrupt,
        12 => says.prop_map(Step::Says),
        3 => Just(Step::Connect),
        1 => Just(Step::Disconnect),
        1 => prop::array::uniform2(0..3usize).prop_map(Step::Silence),
        1 => Just(Step::Unreachable),
        8 => word.prop_map(Step::Journaled),
        1 => Just(Step::Fenced),
    ]
}

/// A create, as its client knows it.
#[expect(clippy::struct_excessive_bools, reason = "facts of a test, not states")]
#[derive(Debug)]
struct Asked {
    lane: usize,
    client: Option<ClientId>,
    input: u8,
    redispatchable: bool,
    /// Connections on which it was sent.
    sent_on: Vec<u32>,
    dropped: bool,
    /// The ledger has said that it may be sent, and it was not since.
    cleared: bool,
    /// It was written to the ledger, perhaps.
    journaled: bool,
    /// What the ledger was told of its end.
    ended: Option<TurnState>,
}

/// What the upstream has of a lane.
#[derive(Debug)]
struct Serving {
    n: u64,
    id: Option<String>,
    /// Events of unknown types that wait for their answer.
    asides: usize,
}

#[derive(Default)]
struct World {
    desk: Desk,
    asked: BTreeMap<u64, Asked>,
    /// The create that opened a turn.
    opened: HashMap<TurnNo, u64>,
    refused: usize,
    connection: u32,
    connected: bool,
    upstream: HashMap<usize, Serving>,
    /// Of lanes, what was sent beside turns that ended before it was answered.
    unanswered: HashMap<usize, usize>,
    finished: HashMap<usize, String>,
    ids: u32,
    /// How much of `desk.sent` was looked at.
    seen: usize,
    /// Turns are asked for first.
    asks: bool,
    /// That writes them to the ledger.
    ledger: bool,
    /// Requests that joined a turn.
    joined: usize,
    /// Turns whose key the ledger knew.
    refused_by_ledger: HashSet<TurnNo>,
}

impl World {
    fn turn_of(&self, n: u64) -> Option<TurnNo> {
        self.opened.iter().find(|(_, opened)| **opened == n).map(|(turn, _)| *turn)
    }

    fn is_done(&self, n: u64) -> bool {
        self.turn_of(n).is_some_and(|turn| self.desk.logs[&turn].done)
    }

    fn at_upstream(&self, n: u64) -> bool {
        self.upstream.values().any(|serving| serving.n == n)
    }

    /// Performs, and checks what holds after every step.
    fn perform(&mut self, actions: Vec<Action>) {
        for action in &actions {
            match action {
                Action::Append { turn, batch, done } => self.check_append(*turn, batch, *done),
                Action::Forget(turn) => {
                    let asked = self.asked.get_mut(&self.opened[turn]).unwrap();
                    assert_eq!(asked.client, None, "a turn that somebody waits for was forgotten");
                    asked.dropped = true;
                }
                Action::Journal { turn, .. } => {
                    let n = self.opened[turn];
                    assert!(self.asks && self.connected);
                    self.asked.get_mut(&n).unwrap().journaled = self.ledger;
                }
                Action::Mark { turn, state, .. } => self.check_mark(*turn, *state),
                _ => {}
            }
        }
        let hang_ups = self.desk.hang_ups;
        self.desk.perform(actions);
        if self.desk.hang_ups > hang_ups {
            self.cut();
        }
        // Served turns that have ended leave the upstream's hands.
        let ended: Vec<usize> = self
            .upstream
            .iter()
            .filter(|(_, serving)| self.is_done(serving.n))
            .map(|(lane, _)| *lane)
            .collect();
        for lane in ended {
            self.leaves(lane);
        }
        let sent = self.desk.sent[self.seen..].iter();
        let creates: Vec<u64> = sent
            .filter(|event| event["type"] == "response.create")
            .map(|event| event["client_metadata"]["n"].as_u64().unwrap())
            .collect();
        for n in creates {
            self.received(n);
        }
        self.seen = self.desk.sent.len();
        assert!(self.upstream.len() <= 16);
        // The ledger learns of every turn's end, and of nothing that it does not know.
        for (turn, n) in &self.opened {
            let asked = &self.asked[n];
            let over = self.desk.logs[turn].done || asked.dropped;
            let told = asked.ended.is_some() || self.refused_by_ledger.contains(turn);
            assert_eq!(told, over && asked.journaled, "create {n}: {asked:?}");
        }
    }

    /// A turn is marked by what the upstream may have done, and ends once.
    fn check_mark(&mut self, turn: TurnNo, state: TurnState) {
        let asked = self.asked.get_mut(&self.opened[&turn]).unwrap();
        assert!(asked.journaled && asked.ended.is_none(), "{asked:?} is marked {state:?}");
        match state {
            TurnState::Visible | TurnState::Done => assert!(!asked.sent_on.is_empty()),
            TurnState::Unknown => assert!(!asked.sent_on.is_empty(), "certainly not sent"),
            TurnState::Failed | TurnState::Dispatched => {}
        }
        if !state.is_open() {
            asked.ended = Some(state);
        }
    }

    fn check_append(&self, turn: TurnNo, batch: &Batch, done: bool) {
        let events = values(batch);
        let n = self.opened[&turn];
        for (at, event) in events.iter().enumerate() {
            let ours = event["type"] == "error" && event.get("n").is_none();
            assert!(ours || event["n"] == n, "turn of create {n} got {event}");
            let lane = LANES[self.asked[&n].lane];
            assert_eq!(event["stream_id"].as_str(), lane, "{event}");
            let kind = event["type"].as_str().unwrap();
            let steered = event["response"]["incomplete_details"]["reason"] == "steered";
            let last = ["response.completed", "response.failed", "response.incomplete", "error"]
                .contains(&kind)
                && !steered
                && event.get("aside").is_none();
            assert_eq!(last, done && at + 1 == events.len(), "a turn ends with its last event");
        }
    }

    /// The upstream got a create: at most once a connection, again only by the rule.
    fn received(&mut self, n: u64) {
        assert!(self.connected, "sent create {n} without a connection");
        let turn = self.turn_of(n).expect("only creates that were accepted are sent");
        let log = &self.desk.logs[&turn];
        let asked = self.asked.get_mut(&n).unwrap();
        assert!(!asked.sent_on.contains(&self.connection), "create {n} sent twice");
        if !asked.sent_on.is_empty() {
            assert!(asked.redispatchable, "create {n} may have had an effect");
            assert_eq!(asked.sent_on.len(), 1, "create {n} sent a third time");
            assert!(log.events.is_empty(), "create {n} was visible");
        }
        assert!(!log.done && !asked.dropped);
        if self.asks {
            assert!(std::mem::take(&mut asked.cleared), "create {n} was not asked for");
        }
        asked.sent_on.push(self.connection);
        let lane = asked.lane;
        let before = self.upstream.insert(lane, Serving { n, id: None, asides: 0 });
        assert!(before.is_none(), "two turns of one lane at once");
        // In order: nothing older of that lane waits.
        for (older, asked) in self.asked.range(..n) {
            let waits = asked.lane == lane && !asked.dropped && self.turn_of(*older).is_some();
            assert!(!waits || self.is_done(*older), "create {n} overtook {older}");
        }
    }

    /// A lane's turn is over, for the upstream.
    fn leaves(&mut self, lane: usize) {
        let asides = self.upstream.remove(&lane).map_or(0, |serving| serving.asides);
        if asides > 0 {
            *self.unanswered.entry(lane).or_default() += asides;
        }
    }

    fn cut(&mut self) {
        self.connected = false;
        self.connection += 1;
        self.upstream.clear();
        self.unanswered.clear();
        self.finished.clear();
    }

    fn create(&mut self, turns: &mut Turns, step: Step) {
        let Step::Create { client, lane, input, store, chained } = step else { return };
        let n = self.asked.len() as u64 + 1;
        // Where requests are compared, it does not count.
        let fields = json!({ "store": store, "client_metadata": { "n": n } });
        let mut event = with(create(&format!("i{input}")), fields);
        if let Some(name) = LANES[lane] {
            event = in_lane(name, event);
        }
        if chained {
            event = with(event, json!({ "previous_response_id": "r0" }));
        }
        let redispatchable = !store && !chained;
        let asked = Asked {
            lane,
            client: Some(client),
            input,
            redispatchable,
            sent_on: Vec::new(),
            dropped: false,
            cleared: false,
            journaled: false,
            ended: None,
        };
        let actions = turns.on_client(client, &Message::text(event.to_string()), None);
        let opens = |action: &Action| match action {
            Action::Open { turn, .. } => Some(*turn),
            _ => None,
        };
        let joins = |action: &Action| match action {
            Action::Subscribe { client: reader, turn } => {
                assert_eq!(*reader, client);
                Some(*turn)
            }
            _ => None,
        };
        let replies = |action: &&Action| matches!(action, Action::Reply { client: to, ended: 1, .. } if *to == client);
        let opened: Vec<_> = actions.iter().filter_map(opens).collect();
        let joined: Vec<_> = actions.iter().filter_map(joins).collect();
        let refused = actions.iter().filter(replies).count();
        self.asked.insert(n, asked);
        match (opened.as_slice(), joined.as_slice(), refused) {
            ([turn], [same], 0) if turn == same => drop(self.opened.insert(*turn, n)),
            ([], [turn], 0) => {
                let joined = self.asked.get_mut(&self.opened[turn]).unwrap();
                assert_eq!((joined.lane, joined.input, joined.client), (lane, input, None));
                joined.client = Some(client);
                self.joined += 1;
                assert!(!self.desk.logs[turn].done);
            }
            ([], [], 1) => self.refused += 1,
            other => panic!("create {n} was answered by {other:?}"),
        }
        self.perform(actions);
    }

    fn leave(&mut self, turns: &mut Turns, client: ClientId) {
        let actions = turns.on_client_gone(client);
        for asked in self.asked.values_mut().filter(|asked| asked.client == Some(client)) {
            asked.client = None;
        }
        for action in &actions {
            if let Action::Join { client, from, turn } = action {
                let (from, turn) = (self.opened[from], self.opened[turn]);
                let left = self.asked.get_mut(&from).unwrap();
                assert_eq!(left.client.take(), Some(*client));
                let (lane, input) = (left.lane, left.input);
                let joined = self.asked.get_mut(&turn).unwrap();
                assert_eq!((joined.lane, joined.input, joined.client), (lane, input, None));
                joined.client = Some(*client);
                self.joined += 1;
            }
        }
        self.perform(actions);
    }

    fn interrupt(&mut self, turns: &mut Turns, client: ClientId, lane: usize, stale: bool) {
        let running = self.upstream.get(&lane).and_then(|serving| serving.id.clone());
        let id = match (stale, running) {
            (false, Some(id)) => id,
            _ => "r-unknown".to_owned(),
        };
        let event = json!({ "type": "response.interrupt", "response_id": id });
        let actions = turns.on_client(client, &Message::text(event.to_string()), None);
        let passed = usize::from(id != "r-unknown");
        assert_eq!(actions.len(), passed, "{actions:?}");
        self.perform(actions);
    }

    fn other(&mut self, turns: &mut Turns, client: Option<ClientId>, lane: usize) {
        let runs = self.upstream.get(&lane).and_then(|serving| self.asked[&serving.n].client);
        let client = client.or(runs).unwrap_or(1);
        let mut event = json!({ "type": "response.new_thing" });
        if let Some(name) = LANES[lane] {
            event = in_lane(name, event);
        }
        let mut serving = self.upstream.get_mut(&lane).filter(|serving| serving.id.is_some());
        serving.take_if(|serving| self.asked[&serving.n].client != Some(client));
        let expected = serving.is_some();
        if let Some(serving) = serving {
            serving.asides += 1;
        }
        let actions = turns.on_client(client, &Message::text(event.to_string()), None);
        let passed = matches!(actions[..], [Action::Upstream(_)]);
        assert_eq!(passed, expected, "{actions:?}");
        self.perform(actions);
    }

    fn says(&mut self, turns: &mut Turns, says: &[Option<(usize, Say)>]) {
        let mut batch = Vec::new();
        for (lane, say) in says.iter().flatten() {
            batch.extend(self.event(*lane, *say));
        }
        if batch.is_empty() {
            return;
        }
        let actions = turns.on_upstream(&batch_of(&batch));
        self.perform(actions);
    }

    /// What an upstream in this state could say; it forgets a lane with its last event.
    fn event(&mut self, lane: usize, say: Say) -> Option<Value> {
        let event = match say {
            Say::Stale(kind) => {
                let id = self.finished.get(&lane)?;
                json!({ "type": format!("response.{kind}"), "response_id": id, "n": 0 })
            }
            Say::Foreign(kind) => {
                json!({ "type": format!("response.{kind}"), "response": { "id": "rX" }, "n": 0 })
            }
            Say::Error
                if self.unanswered.contains_key(&lane) && !self.upstream.contains_key(&lane) =>
            {
                // Beside a turn that begins, or that waits for an answer too, nobody could tell.
                let goes_on = |serving: &Serving| serving.id.is_some() && serving.asides == 0;
                if !self.upstream.values().all(goes_on) {
                    return None;
                }
                let left = self.unanswered.get_mut(&lane)?;
                *left -= 1;
                self.unanswered.retain(|_, left| *left > 0);
                json!({ "type": "error", "status": 400, "error": { "code": "bad" }, "n": 0 })
            }
            _ => {
                // A response that has begun fails by name: an error without one could be taken
                // for an answer to another lane.
                let asides = !self.unanswered.is_empty()
                    || self.upstream.values().any(|serving| serving.asides > 0);
                let serving = self.upstream.get_mut(&lane)?;
                let n = serving.n;
                let event = match (say, &serving.id) {
                    (Say::Created, None) => {
                        self.ids += 1;
                        let id = format!("r{}", self.ids);
                        serving.id = Some(id.clone());
                        // An upstream answers in order.
                        self.unanswered.remove(&lane);
                        created(&id)
                    }
                    (Say::Delta(named), Some(id)) => {
                        let id = if named { json!({ "response_id": id }) } else { json!({}) };
                        with(delta("…"), id)
                    }
                    (Say::Steered, Some(id)) => {
                        let event = json!({ "type": "response.incomplete", "response":
                            { "id": id, "incomplete_details": { "reason": "steered" } } });
                        self.finished.insert(lane, id.clone());
                        serving.id = None;
                        event
                    }
                    (Say::Terminal(kind), Some(id)) => {
                        let event =
                            json!({ "type": format!("response.{kind}"), "response": { "id": id } });
                        self.finished.insert(lane, id.clone());
                        self.leaves(lane);
                        event
                    }
                    (Say::Error, Some(_)) if serving.asides > 0 => {
                        serving.asides -= 1;
                        json!({ "type": "error", "status": 400, "error": { "code": "bad" },
                            "aside": true })
                    }
                    (Say::Error, Some(_)) if asides && lane == 0 => return None,
                    (Say::Error, _) => {
                        self.leaves(lane);
                        json!({ "type": "error", "status": 400, "error": { "code": "bad" } })
                    }
                    _ => return None,
                };
                with(event, json!({ "n": n }))
            }
        };
        Some(match LANES[lane] {
            Some(name) => in_lane(name, event),
            None => event,
        })
    }

    fn run(&mut self, turns: &mut Turns, step: Step) {
        match step {
            Step::Create { .. } => self.create(turns, step),
            Step::Leave(client) => self.leave(turns, client),
            Step::Interrupt { client, lane, stale } => self.interrupt(turns, client, lane, stale),
            Step::Other { client, lane } => self.other(turns, client, lane),
            Step::Says(says) => self.says(turns, &says),
            Step::Connect if !self.connected => {
                self.connected = true;
                self.perform(turns.on_connected());
            }
            Step::Disconnect if self.connected => {
                self.cut();
                self.perform(turns.on_disconnected());
            }
            Step::Silence(lanes) => {
                let running = lanes.iter().filter_map(|lane| self.upstream.get(lane));
                let silent: Vec<_> =
                    running.filter_map(|serving| self.turn_of(serving.n)).collect();
                self.perform(turns.on_silence(&silent));
            }
            Step::Journaled(word) => self.journaled(turns, word),
            Step::Fenced if self.ledger => {
                // The session ends with it; here it only loses what runs.
                self.perform(turns.on_fenced());
                self.cut();
                self.perform(turns.on_disconnected());
            }
            Step::Unreachable if !self.connected => {
                let body = json!({ "code": "gone" });
                self.perform(turns.on_unreachable(
                    502,
                    &body,
                    Code::UpstreamUnavailable.retry_after(),
                ));
            }
            _ => {}
        }
        self.check(turns);
    }

    fn journaled(&mut self, turns: &mut Turns, word: Word) {
        if self.desk.journal.is_empty() {
            return;
        }
        let turn = self.desk.journal.remove(0);
        let n = self.opened[&turn];
        // An answer that comes after the connection went is of no use.
        let waits = self.connected
            && turns.connection == Connection::Open
            && !self.at_upstream(n)
            && !self.is_done(n);
        let journaled = match word {
            Word::Begun => Journaled::Begun,
            Word::Unwritten => Journaled::Unwritten,
            Word::Duplicate if !self.ledger => {
                Journaled::Refused(Error::new(Code::RateLimited, "later"))
            }
            Word::Duplicate => Journaled::Duplicate(TurnRow {
                session: crate::ids::SessionId([0; 16]),
                epoch: crate::ids::Epoch(1),
                no: 1,
                state: TurnState::Unknown,
                request: [0; 16],
                response: None,
            }),
        };
        self.asked.get_mut(&n).unwrap().cleared = word == Word::Begun;
        let before = self.desk.logs[&turn].events.len();
        if waits && word == Word::Duplicate && self.ledger {
            self.refused_by_ledger.insert(turn);
        }
        let actions = turns.on_journaled(turn, &journaled);
        self.perform(actions);
        if word == Word::Begun {
            assert_eq!(self.desk.logs[&turn].events.len(), before);
        }
    }

    /// Nothing is forgotten: each turn is done, was dropped with its client, runs or waits.
    fn check(&self, turns: &Turns) {
        // One that lost both its client and its connection waits, and is no work.
        let journaling = |n: &u64| {
            let turn = self.turn_of(*n);
            let asked = self.connected && turns.connection == Connection::Open;
            asked && turn.is_some_and(|turn| self.desk.journal.contains(&turn))
        };
        let wanted =
            |n: &u64| self.asked[n].client.is_some() || self.at_upstream(*n) || journaling(n);
        let open = |n: &&u64| !self.is_done(**n) && !self.asked[n].dropped && wanted(n);
        let pending = self.opened.values().filter(open).count();
        assert_eq!(turns.running() + turns.queued(), pending);
        assert_eq!(turns.running(), self.upstream.len());
        assert_eq!(turns.is_idle(), pending == 0);
        assert_eq!(turns.done(), self.desk.logs.values().filter(|log| log.done).count() as u64);
    }
}

/// Given a connection that answers, everything that was accepted ends.
fn answer_everything(world: &mut World, turns: &mut Turns) {
    world.run(turns, Step::Connect);
    for _ in 0..64 {
        while !world.desk.journal.is_empty() {
            world.run(turns, Step::Journaled(Word::Begun));
        }
        // One that is given up is followed by another.
        world.run(turns, Step::Connect);
        for lane in 0..LANES.len() {
            world.run(turns, Step::Says([Some((lane, Say::Created)), None, None, None]));
            let last = Some((lane, Say::Terminal("completed")));
            world.run(turns, Step::Says([last, None, None, None]));
        }
    }
    assert!(turns.is_idle());
}

/// I2 and I3 in any order of events: what is sent is sent once (again only by the rule),
/// what ends ends once, nothing is forgotten, nobody sees what is another's.
#[test]
fn any_order_of_events_sends_each_turn_once_and_ends_it_once() {
    let steps = prop::collection::vec(step(), 1..80);
    let joined = Cell::new(0);
    let config = ProptestConfig { cases: 2000, source_file: Some(file!()), ..Default::default() };
    let result =
        TestRunner::new(config).run(&(steps, any::<[bool; 2]>()), |(steps, [asks, ledger])| {
            let ledger = asks && ledger;
            let mut turns = Turns::new(Bounds { asked: asks, ledger, ..bounds(QUEUE) }, Vec::new());
            let mut world = World { asks, ledger, ..World::default() };
            for step in steps {
                world.run(&mut turns, step);
            }
            answer_everything(&mut world, &mut turns);
            joined.set(joined.get() + world.joined);
            Ok(())
        });
    result.unwrap_or_else(|error| panic!("{error}"));
    println!("{} requests joined a turn", joined.get());
    assert!(joined.get() > 0, "the model has to come that far");
}

/// An upstream that owes two answers, and fails a turn of another lane.
#[test]
fn what_is_owed_to_a_lane_is_owed_no_more_once_its_next_turn_begins() {
    let asks = |lane| Step::Create { client: 1, lane, input: 0, store: false, chained: false };
    let says = |lane, say| Step::Says([Some((lane, say)), None, None, None]);
    let steps = [
        Step::Connect,
        asks(1),
        says(1, Say::Created),
        Step::Other { client: None, lane: 1 },
        Step::Other { client: None, lane: 1 },
        says(1, Say::Terminal("completed")),
        asks(0),
        says(0, Say::Created),
        says(1, Say::Error),
        says(0, Say::Error),
    ];
    let (mut turns, mut world) = (Turns::new(bounds(QUEUE), Vec::new()), World::default());
    for step in steps {
        world.run(&mut turns, step);
    }
    answer_everything(&mut world, &mut turns);
}
