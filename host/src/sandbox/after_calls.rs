//! Turns of guests between their calls to the host.
//!
//! Compiled code checks the epoch where a function begins and in each round of a loop. Between
//! these checks a guest can make any number of calls to the host, one after the other. So the host
//! checks the turn, too, when one of its functions returns, for components that have a function of
//! many calls.

use std::pin::Pin;
use std::task::{Context, Poll};

use wasmtime::{CallHook, CallHookHandler, Store, StoreContextMut};

use super::meter;
use super::needs::Calls;
use super::state::State;

/// Has each call to the host that returns after the end of a turn let others run.
pub(super) fn check(store: &mut Store<State>, calls: Calls) {
    match calls {
        Calls::OnFibers => store.call_hook_async(Yields),
        // What calls a guest directly cannot wait.
        Calls::Direct => store.call_hook(|mut store, event| match event {
            CallHook::ReturningFromHost => store.data_mut().returns_to_guest(),
            _ => Ok(()),
        }),
    }
}

/// Yields at the end of a turn.
struct Yields;

type Pause<'a> = Pin<Box<dyn Future<Output = wasmtime::Result<()>> + Send + 'a>>;

impl CallHookHandler<State> for Yields {
    // As the macro `async_trait` writes it. An `async fn` would allocate at each call.
    fn handle_call_event<'this, 'store, 'pause>(
        &'this self,
        store: StoreContextMut<'store, State>,
        event: CallHook,
    ) -> Pause<'pause>
    where
        'this: 'pause,
        'store: 'pause,
    {
        if matches!(event, CallHook::ReturningFromHost) && store.data().turn_is_over() {
            return Box::pin(async {
                meter::yields();
                tokio::task::yield_now().await;
                Ok(())
            });
        }
        Box::pin(GoesOn)
    }
}

/// Is ready at once. It has no size, so a box of it takes no memory.
struct GoesOn;

impl Future for GoesOn {
    type Output = wasmtime::Result<()>;

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Ok(()))
    }
}
