//! Any order of events, against a small model of the clients and of the upstream.
//!
//! Every create carries a number and every upstream event the number of the create that it
//! is about, so that a log tells at once whether it holds a foreign event.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use super::*;

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
    /// What the upstream says, in one batch of up to four events.
    Says([Option<(usize, Say)>; 4]),
    Connect,
    Disconnect,
    Silence,
    Unreachable,
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
        1 => Just(Say::Error),
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
    prop_oneof![
        8 => create,
        2 => (1..4u32).prop_map(Step::Leave),
        1 => interrupt,
        12 => says.prop_map(Step::Says),
        3 => Just(Step::Connect),
        1 => Just(Step::Disconnect),
        1 => Just(Step::Silence),
        1 => Just(Step::Unreachable),
    ]
}

/// A create, as its client knows it.
#[derive(Debug)]
struct Asked {
    lane: usize,
    client: Option<ClientId>,
    input: u8,
    redispatchable: bool,
    /// Connections on which it was sent.
    sent_on: Vec<u32>,
    dropped: bool,
}

/// What the upstream has of a lane.
#[derive(Debug)]
struct Serving {
    n: u64,
    id: Option<String>,
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
    finished: HashMap<usize, String>,
    ids: u32,
    /// How much of `desk.sent` was looked at.
    seen: usize,
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
            if let Action::Append { turn, batch, done } = action {
                self.check_append(*turn, batch, *done);
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
        ended.iter().for_each(|lane| drop(self.upstream.remove(lane)));
        for event in self.desk.sent[self.seen..].to_vec() {
            if event["type"] == "response.create" {
                self.received(event["n"].as_u64().unwrap());
            }
        }
        self.seen = self.desk.sent.len();
        assert!(self.upstream.len() <= 16);
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
                && !steered;
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
        asked.sent_on.push(self.connection);
        let lane = asked.lane;
        let before = self.upstream.insert(lane, Serving { n, id: None });
        assert!(before.is_none(), "two turns of one lane at once");
        // In order: nothing older of that lane waits.
        for (older, asked) in self.asked.range(..n) {
            let waits = asked.lane == lane && !asked.dropped && self.turn_of(*older).is_some();
            assert!(!waits || self.is_done(*older), "create {n} overtook {older}");
        }
    }

    fn cut(&mut self) {
        self.connected = false;
        self.connection += 1;
        self.upstream.clear();
        self.finished.clear();
    }

    fn create(&mut self, turns: &mut Turns, step: Step) {
        let Step::Create { client, lane, input, store, chained } = step else { return };
        let n = self.asked.len() as u64 + 1;
        let mut event = with(create(&format!("i{input}")), json!({ "store": store, "n": n }));
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
        };
        let actions = turns.on_client(client, &Message::text(event.to_string()));
        let opens = |action: &Action| match action {
            Action::Open(turn) => Some(*turn),
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
                assert!(!self.desk.logs[turn].done);
            }
            ([], [], 1) => self.refused += 1,
            other => panic!("create {n} was answered by {other:?}"),
        }
        self.perform(actions);
    }

    fn leave(&mut self, turns: &mut Turns, client: ClientId) {
        turns.on_client_gone(client);
        let open: Vec<u64> = self.opened.values().copied().collect();
        for n in open {
            if self.asked[&n].client == Some(client) && !self.is_done(n) {
                let running = self.at_upstream(n);
                let asked = self.asked.get_mut(&n).unwrap();
                asked.client = None;
                asked.dropped = !running;
            }
        }
    }

    fn interrupt(&mut self, turns: &mut Turns, client: ClientId, lane: usize, stale: bool) {
        let running = self.upstream.get(&lane).and_then(|serving| serving.id.clone());
        let id = match (stale, running) {
            (false, Some(id)) => id,
            _ => "r-unknown".to_owned(),
        };
        let event = json!({ "type": "response.interrupt", "response_id": id });
        let actions = turns.on_client(client, &Message::text(event.to_string()));
        let passed = usize::from(id != "r-unknown");
        assert_eq!(actions.len(), passed, "{actions:?}");
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
            _ => {
                let serving = self.upstream.get_mut(&lane)?;
                let n = serving.n;
                let event = match (say, &serving.id) {
                    (Say::Created, None) => {
                        self.ids += 1;
                        let id = format!("r{}", self.ids);
                        serving.id = Some(id.clone());
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
                        self.upstream.remove(&lane);
                        event
                    }
                    (Say::Error, _) => {
                        self.upstream.remove(&lane);
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
            Step::Says(says) => self.says(turns, &says),
            Step::Connect if !self.connected => {
                self.connected = true;
                self.perform(turns.on_connected());
            }
            Step::Disconnect if self.connected => {
                self.cut();
                self.perform(turns.on_disconnected());
            }
            Step::Silence if !self.upstream.is_empty() => self.perform(turns.on_silence()),
            Step::Unreachable if !self.connected => {
                let body = json!({ "code": "gone" });
                self.perform(turns.on_unreachable(502, &body, Code::UpstreamUnavailable));
            }
            _ => {}
        }
        self.check(turns);
    }

    /// Nothing is forgotten: each turn is done, was dropped with its client, runs or waits.
    fn check(&self, turns: &Turns) {
        let open = |n: &&u64| !self.is_done(**n) && !self.asked[n].dropped;
        let pending = self.opened.values().filter(open).count();
        assert_eq!(turns.running() + turns.queued(), pending);
        assert_eq!(turns.running(), self.upstream.len());
        assert_eq!(turns.is_idle(), pending == 0);
        assert_eq!(turns.done(), self.desk.logs.values().filter(|log| log.done).count() as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    /// I2 and I3 in any order of events: what is sent is sent once (again only by the rule),
    /// what ends ends once, nothing is forgotten, nobody sees what is another's.
    #[test]
    fn any_order_of_events_sends_each_turn_once_and_ends_it_once(
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut turns = Turns::new(QUEUE);
        let mut world = World::default();
        for step in steps {
            world.run(&mut turns, step);
        }
        // Given a connection that answers, everything that was accepted ends.
        world.run(&mut turns, Step::Connect);
        for _ in 0..64 {
            for lane in 0..LANES.len() {
                world.run(&mut turns, Step::Says([Some((lane, Say::Created)), None, None, None]));
                let last = Some((lane, Say::Terminal("completed")));
                world.run(&mut turns, Step::Says([last, None, None, None]));
            }
        }
        prop_assert!(turns.is_idle());
    }
}
