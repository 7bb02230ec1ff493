//! How connections that share an instance wake each other.

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Waker};

use wit_bindgen::{StreamReader, StreamWriter};

use super::bindings;

/// Makes a bell: whoever has the [`Ringer`] wakes the connection that waits for the [`Bell`].
///
/// Each connection is a task of its own to the host. What makes futures of one connection ready, as the channels of other
/// crates do, does not reach another: this does.
pub fn bell() -> (Ringer, Bell) {
    let (writer, reader) = bindings::wit_stream::new();
    let state = Rc::<State>::default();
    let ringer = Ringer {
        writer,
        state: Rc::clone(&state),
    };
    (ringer, Bell { reader, state })
}

#[derive(Default)]
struct State {
    rung: Cell<bool>,
    waiting: Cell<bool>,
}

/// The end that rings.
pub struct Ringer {
    writer: StreamWriter<u8>,
    state: Rc<State>,
}

impl Ringer {
    /// Wakes who waits, or who waits next. To ring twice before that is the same as once.
    pub fn ring(&mut self) {
        if self.state.rung.replace(true) || !self.state.waiting.replace(false) {
            return;
        }
        // Somebody reads, so this is done at once; if they have given up, it is given up too.
        let ringing = pin!(self.writer.write(vec![0]));
        let _ = ringing.poll(&mut Context::from_waker(Waker::noop()));
    }
}

/// The end that waits.
pub struct Bell {
    reader: StreamReader<u8>,
    state: Rc<State>,
}

impl Bell {
    /// Waits until it is rung, or returns at once if it was since the last time.
    pub async fn rung(&mut self) {
        if !self.state.rung.replace(false) {
            self.state.waiting.set(true);
            self.reader.read(Vec::with_capacity(1)).await;
            self.state.waiting.set(false);
            self.state.rung.set(false);
        }
    }
}
