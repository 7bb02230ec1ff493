//! The contract of `wit/` as Rust types, made by `bindgen!`. Nothing else stands here.

/// World `service`: the streams contract.
pub(crate) mod service {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "service",
    });
}

/// World `session-service`: the sessions contract.
pub(crate) mod session_service {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "session-service",
        exports: { default: async },
        ownership: Borrowing { duplicate_if_necessary: true },
    });
}
