//! The room: who is in it, and what they have yet to hear.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::rc::Rc;

use inet_guest::streams::{Bell, Ringer, bell};

/// The longest name, in characters.
const MAX_NAME: usize = 20;

/// Lines that wait for one member. What comes while they do is missed by it.
const MAX_WAITING: usize = 256;

/// Bytes that are sent at once, about.
const PIECE: usize = 16 * 1024;

thread_local! {
    /// All that the connections of an instance have in common. It is never borrowed across a wait.
    static ROOM: RefCell<BTreeMap<String, Ears>> = const { RefCell::new(BTreeMap::new()) };
}

/// What one member has yet to hear.
struct Ears {
    /// Each line is held once, however many wait for it.
    waiting: VecDeque<Rc<str>>,
    missed: usize,
    ringer: Ringer,
    /// The member has left, and hears what waits but nothing new.
    left: bool,
}

impl Ears {
    fn hear(&mut self, line: &Rc<str>) {
        if self.left {
            return;
        }
        if self.missed > 0 || self.waiting.len() >= MAX_WAITING {
            self.missed += 1;
        } else {
            self.waiting.push_back(Rc::clone(line));
        }
        self.ringer.ring();
    }

    /// What waits, as far as it is sent at once.
    fn take(&mut self) -> String {
        let mut text = String::new();
        while text.len() < PIECE
            && let Some(line) = self.waiting.pop_front()
        {
            text.push_str(&line);
        }
        if self.waiting.is_empty() && self.missed > 0 {
            text.push_str(&format!("* you have missed {} lines\n", self.missed));
            self.missed = 0;
        }
        text
    }
}

/// Why somebody cannot come in by a name.
pub(crate) enum Refusal {
    Bad,
    Taken,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bad => write!(f, "A name has 1 to {MAX_NAME} letters and digits"),
            Self::Taken => f.write_str("Somebody has that name"),
        }
    }
}

/// Somebody in the room, who leaves it when this is dropped.
pub(crate) struct Member {
    name: String,
}

impl Member {
    /// Comes in, and tells both sides who is there. The bell rings when there is something to hear.
    pub(crate) fn enter(name: &str) -> Result<(Self, Bell), Refusal> {
        if name.is_empty() || name.chars().count() > MAX_NAME || !name.chars().all(char::is_alphanumeric) {
            return Err(Refusal::Bad);
        }
        ROOM.with_borrow_mut(|room| {
            if room.contains_key(name) {
                return Err(Refusal::Taken);
            }
            let others: Vec<&str> = room
                .iter()
                .filter(|(_, ears)| !ears.left)
                .map(|(name, _)| name.as_str())
                .collect();
            let others = match others.as_slice() {
                [] => "nobody else".to_owned(),
                some => some.join(", "),
            };
            let (ringer, bell) = bell();
            let mut ears = Ears {
                waiting: VecDeque::new(),
                missed: 0,
                ringer,
                left: false,
            };
            ears.hear(&format!("* here: {others}\n").into());
            tell(room, name, &format!("* {name} has come\n"));
            room.insert(name.to_owned(), ears);
            let name = name.to_owned();
            Ok((Self { name }, bell))
        })
    }

    /// Tells all others.
    pub(crate) fn say(&self, text: &str) {
        let line = format!("{}: {text}\n", self.name);
        ROOM.with_borrow_mut(|room| tell(room, &self.name, &line));
    }

    /// Leaves the room, with what was said before still to be heard. The name is free when that has been.
    pub(crate) fn leave(&self) {
        ROOM.with_borrow_mut(|room| {
            let Some(ears) = room.get_mut(&self.name) else {
                return;
            };
            if !std::mem::replace(&mut ears.left, true) {
                ears.ringer.ring();
                tell(room, &self.name, &format!("* {} has gone\n", self.name));
            }
        });
    }

    /// What has been said, as soon as there is something; `None` when the member has left and heard it all.
    pub(crate) async fn heard(&self, bell: &mut Bell) -> Option<String> {
        loop {
            let (text, left) = ROOM.with_borrow_mut(|room| match room.get_mut(&self.name) {
                Some(ears) => (ears.take(), ears.left),
                None => (String::new(), true),
            });
            if !text.is_empty() {
                return Some(text);
            }
            if left {
                return None;
            }
            bell.rung().await;
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.leave();
        ROOM.with_borrow_mut(|room| room.remove(&self.name));
    }
}

/// Has everybody hear `line` but the one of this name.
fn tell(room: &mut BTreeMap<String, Ears>, but: &str, line: &str) {
    let line = Rc::from(line);
    for (name, ears) in room {
        if name != but {
            ears.hear(&line);
        }
    }
}
