//! The line framer, against lines that are cut out of the whole input.

use std::ops::ControlFlow;

use arbitrary::{Arbitrary, Unstructured};
use line_framer::{Framer, TooLong};

#[derive(Debug)]
struct Case {
    max: u8,
    /// The number of the line at which the reader breaks.
    enough: u8,
    chunks: Vec<Vec<u8>>,
}

impl<'a> Arbitrary<'a> for Case {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self {
            max: u.arbitrary()?,
            enough: u.arbitrary()?,
            chunks: u.arbitrary()?,
        })
    }
}

/// Feeds a framer in chunks.
///
/// # Panics
///
/// It does not give what the model gives.
pub fn run(bytes: &[u8]) {
    let Ok(case) = Case::arbitrary(&mut Unstructured::new(bytes)) else {
        return;
    };
    let (max, enough) = (usize::from(case.max), usize::from(case.enough) + 1);
    let mut framer = Framer::new(max);
    let mut lines = Vec::new();
    let mut end = Ok(ControlFlow::Continue(()));
    for chunk in &case.chunks {
        end = framer.feed(chunk, |line| {
            lines.push(line.to_vec());
            if lines.len() == enough {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        if end != Ok(ControlFlow::Continue(())) {
            break;
        }
    }

    let whole = case.chunks.concat();
    let mut expected: Vec<&[u8]> = whole.split_inclusive(|byte| *byte == b'\n').collect();
    let rest = expected.pop_if(|last| !last.ends_with(b"\n")).unwrap_or_default();
    let long = expected
        .iter()
        .position(|line| line.len() > max + 1)
        .or((rest.len() > max).then_some(expected.len()));
    let count = expected.len();
    let expected_end = match long {
        Some(long) if long < enough => Err(TooLong),
        _ if count >= enough => Ok(ControlFlow::Break(())),
        _ => Ok(ControlFlow::Continue(())),
    };
    expected.truncate(long.unwrap_or(count).min(enough));
    assert_eq!(end, expected_end, "{case:?}");
    assert_eq!(lines, expected, "{case:?}");
    if end == Ok(ControlFlow::Continue(())) {
        assert_eq!(framer.rest(), rest, "{case:?}");
    }
}
