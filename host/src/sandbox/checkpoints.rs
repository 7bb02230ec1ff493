//! Checks of the epoch that the host adds to the functions of a guest.
//!
//! Compiled code checks the epoch where a function begins, in each round of a loop, and before most
//! instructions on a range of memory or of a table. Two kinds of code have none of these for a long
//! time: instructions without a loop, and a recursion that returns. In the second, each of some
//! thousand frames can call the host or compute, and no function begins.
//!
//! An empty loop is a check that costs two instructions. The host therefore writes one into a
//! function before the guest could go on for long. This changes nothing else about the function.

use std::borrow::Cow;

use wasmparser::{Encoding, FunctionBody, Operator, Payload, Result, TypeRef};

use super::rewrite::{Change, rewrite};

/// Instructions after a check, as long as nothing was called since.
///
/// The first run of code takes some 0.3 µs for each instruction.
const IN_A_ROW: u32 = 8192;

/// Instructions after a call has returned. Each frame of the stack can have so many, and the stack
/// of a guest has room for about 8,000 frames.
const AFTER_CALL: u32 = 128;

/// `loop` without parameters and results, and `end`.
const CHECK: [u8; 3] = [0x03, 0x40, 0x0b];

/// Returns `bytes`, a component or module, with checks in its functions. Returns `None` if
/// components are nested too deep in each other.
///
/// # Errors
///
/// The bytes are not valid.
pub(super) fn with_checkpoints(bytes: &[u8]) -> Result<Option<Vec<u8>>> {
    rewrite(bytes, &mut Checkpoints::default())
}

/// Adds checks to functions.
#[derive(Debug, Default)]
struct Checkpoints {
    /// Functions that the current module imports. Their calls do not begin with a check if they are
    /// functions of the host.
    imported: u32,
}

impl Change for Checkpoints {
    fn see(&mut self, payload: &Payload) -> Result<()> {
        match payload {
            Payload::Version {
                encoding: Encoding::Module,
                ..
            } => self.imported = 0,
            Payload::ImportSection(section) => {
                for import in section.clone().into_imports() {
                    if matches!(import?.ty, TypeRef::Func(_) | TypeRef::FuncExact(_)) {
                        self.imported = self.imported.saturating_add(1);
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn function<'a>(&mut self, body: &FunctionBody<'a>) -> Result<Cow<'a, [u8]>> {
        let bytes = body.as_bytes();
        let begin = body.range().start;
        let mut path = Path::begin(self.imported);
        let mut changed = Vec::new();
        let mut copied = 0;
        for operator in body.get_operators_reader()?.into_iter_with_offsets() {
            let (operator, offset) = operator?;
            if path.needs_check(&operator) {
                let offset = offset - begin;
                changed.extend(&bytes[copied..offset]);
                changed.extend(CHECK);
                copied = offset;
                path.check();
            }
            path.take(&operator);
        }
        if copied == 0 {
            return Ok(Cow::Borrowed(bytes));
        }
        changed.extend(&bytes[copied..]);
        Ok(Cow::Owned(changed))
    }
}

/// The longest way to an instruction from the check before it.
#[derive(Clone, Copy, Debug, Default)]
struct Since {
    /// Instructions.
    count: u32,
    /// A call has returned, or an instruction has taken as long as one can.
    ///
    /// Then the next call of the host, and the next such instruction, have a check before them.
    called: bool,
}

impl Since {
    fn or_longer(self, other: Self) -> Self {
        Self {
            count: self.count.max(other.count),
            called: self.called || other.called,
        }
    }
}

/// Returns the longer of two ways, where there may be none.
fn longer(one: Option<Since>, other: Option<Since>) -> Option<Since> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.or_longer(other)),
        (one, other) => one.or(other),
    }
}

/// A block that the path is in.
#[derive(Debug)]
struct Block {
    is_loop: bool,
    /// Where the `else` of an `if` begins, as long as it has not.
    at_else: Option<Since>,
    /// The longest of the branches to its end.
    at_end: Option<Since>,
}

/// A walk through the instructions of a function, in which each has the longest way to it.
#[derive(Debug)]
struct Path {
    imported: u32,
    /// `None` where no instruction runs, as after a branch.
    since: Option<Since>,
    blocks: Vec<Block>,
}

impl Path {
    fn begin(imported: u32) -> Self {
        let mut path = Self {
            imported,
            since: Some(Since::default()),
            blocks: Vec::new(),
        };
        path.enter(false, None);
        path
    }

    /// Checks whether a check has to come before this instruction.
    fn needs_check(&self, operator: &Operator) -> bool {
        let Some(Since { count, called }) = self.since else {
            return false;
        };
        if self.is_long(operator) {
            called
        } else {
            count >= if called { AFTER_CALL } else { IN_A_ROW }
        }
    }

    /// There is a check here.
    fn check(&mut self) {
        self.since = self.since.map(|_| Since::default());
    }

    /// Goes over an instruction. Those of proposals that the host does not offer have no rules
    /// here: the compiler refuses them.
    fn take(&mut self, operator: &Operator) {
        if let Some(since) = &mut self.since {
            since.count += 1;
        }
        match operator {
            Operator::Block { .. } => self.enter(false, None),
            Operator::Loop { .. } => {
                self.check();
                self.enter(true, None);
            }
            Operator::If { .. } => self.enter(false, self.since),
            Operator::Else => self.turn_to_else(),
            Operator::End => self.leave(),
            Operator::BrIf { relative_depth }
            | Operator::BrOnNull { relative_depth }
            | Operator::BrOnNonNull { relative_depth }
            | Operator::BrOnCast { relative_depth, .. }
            | Operator::BrOnCastFail { relative_depth, .. } => self.branch(*relative_depth),
            Operator::Br { relative_depth } => {
                self.branch(*relative_depth);
                self.since = None;
            }
            Operator::BrTable { targets } => {
                let others = targets.targets().map_while(Result::ok);
                others
                    .chain([targets.default()])
                    .for_each(|depth| self.branch(depth));
                self.since = None;
            }
            Operator::Return
            | Operator::Unreachable
            | Operator::ReturnCall { .. }
            | Operator::ReturnCallIndirect { .. }
            | Operator::ReturnCallRef { .. } => self.since = None,
            // Its function begins with a check.
            Operator::Call { function_index } if *function_index >= self.imported => {
                self.check();
                self.call();
            }
            operator if self.is_long(operator) => self.call(),
            _ => {}
        }
    }

    /// Returns whether an instruction may take much longer than most others.
    fn is_long(&self, operator: &Operator) -> bool {
        self.may_call_host(operator) || calls_runtime(operator)
    }

    /// Returns whether an instruction may run code of the host. One that calls another module
    /// counts as well.
    fn may_call_host(&self, operator: &Operator) -> bool {
        match operator {
            Operator::Call { function_index } | Operator::ReturnCall { function_index } => {
                *function_index < self.imported
            }
            Operator::CallIndirect { .. }
            | Operator::ReturnCallIndirect { .. }
            | Operator::CallRef { .. }
            | Operator::ReturnCallRef { .. } => true,
            _ => false,
        }
    }

    /// Something has been called, or has taken as long as a call.
    fn call(&mut self) {
        if let Some(since) = &mut self.since {
            since.called = true;
        }
    }

    fn enter(&mut self, is_loop: bool, at_else: Option<Since>) {
        self.blocks.push(Block {
            is_loop,
            at_else,
            at_end: None,
        });
    }

    fn turn_to_else(&mut self) {
        if let Some(block) = self.blocks.last_mut() {
            block.at_end = longer(block.at_end, self.since);
            self.since = block.at_else.take();
        }
    }

    fn leave(&mut self) {
        if let Some(block) = self.blocks.pop() {
            // The end of an `if` without `else` is where its `else` would begin.
            self.since = longer(longer(self.since, block.at_end), block.at_else);
        }
    }

    /// Notes that there is a branch from here. One to a loop begins another round, with a check.
    fn branch(&mut self, depth: u32) {
        let outer = self.blocks.iter_mut().rev().nth(depth as usize);
        if let Some(block) = outer.filter(|block| !block.is_loop) {
            block.at_end = longer(block.at_end, self.since);
        }
    }
}

/// Returns whether an instruction runs code of wasmtime, or takes time in proportion to a number
/// that it is given.
///
/// wasmtime adds a check before one on a range, but not if the number is a constant up to 128, nor
/// to `memory.grow` with any constant. To copy 128 elements takes 11 µs if they are used for the
/// first time: wasmtime fills in an element of a table when it is first read.
fn calls_runtime(operator: &Operator) -> bool {
    matches!(
        operator,
        Operator::MemoryGrow { .. }
            | Operator::MemoryInit { .. }
            | Operator::MemoryCopy { .. }
            | Operator::MemoryFill { .. }
            | Operator::TableGet { .. }
            | Operator::TableGrow { .. }
            | Operator::TableInit { .. }
            | Operator::TableCopy { .. }
            | Operator::TableFill { .. }
            | Operator::ElemDrop { .. }
            | Operator::RefFunc { .. }
    )
}

#[cfg(test)]
mod tests {
    use wasmparser::Parser;

    use super::super::content::ECHO;
    use super::super::proposals;
    use super::super::rewrite::NESTED;
    use super::*;

    /// The bodies of all functions.
    fn functions(bytes: &[u8]) -> Vec<FunctionBody<'_>> {
        let payloads = Parser::new(0).parse_all(bytes).map(Result::unwrap);
        payloads
            .filter_map(|payload| match payload {
                Payload::CodeSectionEntry(body) => Some(body),
                _ => None,
            })
            .collect()
    }

    /// The names of the instructions of a function with this code, in lower case. An empty loop is
    /// `check`.
    fn checked(code: &str) -> String {
        let text = format!(
            "(module
                (import \"a\" \"host\" (func $host))
                (memory 1)
                (table $t 1 funcref)
                (func $own)
                (elem $e func $own)
                (data $d \"data\")
                (func (param $p i32) {code}))"
        );
        let changed = with_checkpoints(&wat::parse_str(text).unwrap()).unwrap().unwrap();
        proposals::validate(&changed).unwrap();
        let functions = functions(&changed);
        let operators = functions.last().unwrap().get_operators_reader().unwrap();
        let names = operators.into_iter().map(|operator| {
            let operator = format!("{:?}", operator.unwrap()).to_lowercase();
            match operator.as_str() {
                "call { function_index: 0 }" => "host".to_owned(),
                "call { function_index: 1 }" => "own".to_owned(),
                other => other.split(' ').next().unwrap_or_default().to_owned(),
            }
        });
        let names: Vec<String> = names.collect();
        names.join(" ").replace("loop end", "check")
    }

    #[test]
    fn the_host_is_not_called_after_a_call_without_a_check() {
        for (code, expected) in [
            ("call $host", "host end"),
            ("call $own", "own end"),
            ("call $host call $host", "host check host end"),
            ("call $host call $own", "host own end"),
            ("call $own call $host", "own check host end"),
            // The check is no part of the loop, so its rounds are not counted.
            ("call $own loop $l call $host end", "own loop host end end"),
            (
                "loop $l call $host local.get $p br_if $l end call $host",
                "loop host localget brif end check host end",
            ),
            (
                "local.get $p if call $own else nop end call $host",
                "localget if own else nop end check host end",
            ),
            (
                "local.get $p if call $own return end call $host",
                "localget if own return end host end",
            ),
            (
                "block $b call $own br $b end call $host",
                "block own br end check host end",
            ),
            (
                "block $b call $own local.get $p br_table 0 $b end call $host",
                "block own localget brtable end check host end",
            ),
            ("call $own unreachable call $host", "own unreachable host end"),
            (
                "i32.const 0 call_indirect i32.const 0 call_indirect",
                "i32const callindirect i32const check callindirect end",
            ),
            ("call $host return_call $host", "host check returncall end"),
        ] {
            assert_eq!(checked(code), expected, "{code}");
        }
    }

    #[test]
    fn instructions_that_take_long_have_a_check_between_them() {
        let three = "i32.const 0 i32.const 0 i32.const 9";
        for (arguments, operator) in [
            ("i32.const 0", "memory.grow"),
            (three, "memory.init $d"),
            (three, "memory.copy"),
            (three, "memory.fill"),
            ("i32.const 0", "table.get $t"),
            ("ref.null func i32.const 1", "table.grow $t"),
            (three, "table.init $t $e"),
            (three, "table.copy $t $t"),
            ("i32.const 0 ref.null func i32.const 9", "table.fill $t"),
            ("", "elem.drop $e"),
            ("", "ref.func $own"),
        ] {
            let drops = ["memory.grow", "table.g", "ref.func"];
            let drop = drops.iter().any(|name| operator.starts_with(name));
            let drop = if drop { "drop" } else { "" };
            let one = format!("{arguments} {operator} {drop} ");
            let checks = |code: &str| checked(code).matches("check").count();
            assert_eq!(checks(&one), 0, "{operator}");
            assert_eq!(checks(&one.repeat(3)), 2, "{operator}");
            // Each frame of a recursion that returns goes on behind a call.
            assert_eq!(checks(&format!("call $own {one}")), 1, "{operator}");
            assert_eq!(checks(&format!("{one} call $host")), 1, "{operator}");
            assert_eq!(checks(&format!("{one} call $own")), 0, "{operator}");
        }
    }

    /// How many instructions there are before the first check, between checks, and after the last.
    fn runs(code: &str) -> Vec<usize> {
        checked(code)
            .split("check")
            .map(|run| run.split_whitespace().count())
            .collect()
    }

    #[test]
    fn many_instructions_in_a_row_have_checks_between_them() {
        let (long, short) = (IN_A_ROW as usize, AFTER_CALL as usize);
        let nops = |count| "nop ".repeat(count);
        // The end of the function counts.
        assert_eq!(runs(&nops(long - 1)), [long]);
        assert_eq!(runs(&nops(long)), [long, 1]);
        assert_eq!(runs(&nops(2 * long)), [long, long, 1]);
        // The call itself does not count.
        let after_call = format!("call $own {}", nops(short + 10));
        assert_eq!(runs(&after_call), [short + 1, 11]);
        // A branch that is not taken leads past the call.
        let beside = format!("{} local.get $p if call $own end {}", nops(100), nops(100));
        assert_eq!(runs(&beside).len(), 2);
        // The `end` of the loop counts.
        let behind = format!("call $own loop end {}", nops(long - 2));
        assert_eq!(runs(&behind), [1, long - 1]);
    }

    #[test]
    fn other_code_stays_as_it_is() {
        let bytes = wat::parse_str(NESTED).unwrap();
        assert_eq!(with_checkpoints(&bytes).unwrap().unwrap(), bytes);
    }

    #[test]
    fn a_guest_stays_valid() {
        let changed = with_checkpoints(ECHO).unwrap().unwrap();
        proposals::validate(&changed).unwrap();
        assert_eq!(functions(&changed).len(), functions(ECHO).len());
        assert!(changed.len() < ECHO.len() + ECHO.len() / 20, "{}", changed.len());
    }

    #[test]
    fn what_is_not_valid_is_refused() {
        for length in [7, 9, ECHO.len() / 2, ECHO.len() - 1] {
            assert!(with_checkpoints(&ECHO[..length]).is_err(), "{length}");
        }
    }
}
