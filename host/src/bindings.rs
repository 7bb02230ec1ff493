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

/// World `session-service`, called directly.
pub(crate) mod direct_session_service {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "session-service",
        ownership: Borrowing { duplicate_if_necessary: true },
        with: { "inet:service/types": super::session_service::inet::service::types },
    });
}

/// World `movable-session-service`, of which only interface `migration` is used.
pub(crate) mod movable_session_service {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "movable-session-service",
        exports: { default: async },
        ownership: Borrowing { duplicate_if_necessary: true },
    });
}
