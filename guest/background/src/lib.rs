//! Work that goes on after an exported function has returned.

#![forbid(unsafe_code)]

use futures_channel::oneshot;

/// Goes on with `work` when the exported function that calls this has returned. The guest's task ends with it.
///
/// [`wit_bindgen::spawn_local`] alone does the same and costs more. It keeps tasks in a `FuturesUnordered`, which asks to be
/// polled once more whenever it has polled all of them, and for a guest that is a way to the host and back. So there
/// is a second task here, which is never polled before the first is done.
pub fn spawn(work: impl Future<Output = ()> + 'static) {
    let (working, done) = oneshot::channel::<()>();
    wit_bindgen::spawn_local(async move {
        work.await;
        drop(working);
    });
    wit_bindgen::spawn_local(async move {
        // It says that the other end is gone.
        let _ = done.await;
    });
}
