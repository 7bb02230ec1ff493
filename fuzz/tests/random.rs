//! The same cases from random bytes.

use proptest::collection::vec;
use proptest::prelude::*;

/// Many more cases than proptest's own default, each of which is quick.
fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases(20_000))]

    #[test]
    fn framer(bytes in vec(any::<u8>(), 0..500)) {
        fuzz::framer::run(&bytes);
    }

    #[test]
    fn conversation(bytes in vec(any::<u8>(), 0..300)) {
        fuzz::conversation::run(&bytes);
    }

    #[test]
    fn proxy_header(bytes in vec(any::<u8>(), 0..200)) {
        fuzz::proxy_header::run(&bytes);
    }

    #[test]
    fn command_line(bytes in vec(any::<u8>(), 0..50)) {
        fuzz::command_line::run(&bytes);
    }

    #[test]
    fn services_file(bytes in vec(any::<u8>(), 0..100)) {
        fuzz::services_file::run(&bytes);
    }
}

proptest! {
    #![proptest_config(cases(10_000))]

    #[test]
    fn handshake(bytes in vec(any::<u8>(), 0..20)) {
        fuzz::handshake::run(&bytes);
    }
}

proptest! {
    // Each case compiles a module.
    #![proptest_config(cases(300))]

    #[test]
    fn cache(bytes in vec(any::<u8>(), 0..50)) {
        fuzz::cache::run(&bytes);
    }
}

proptest! {
    #![proptest_config(cases(2_000))]

    #[test]
    fn migration(bytes in vec(any::<u8>(), 0..300)) {
        fuzz::migration::run(&bytes);
    }
}

proptest! {
    #![proptest_config(cases(5_000))]

    #[test]
    fn connection(bytes in vec(any::<u8>(), 0..500)) {
        fuzz::connection::run(&bytes);
    }
}
