//! Components without the code of their functions.
//!
//! Such a component has the imports, exports, types, memories and tables of the one that it is made
//! of, and compiles in milliseconds. A check links and instantiates it, which tells whether the host
//! accepts the component, without compiling or running the code of the guest.

use wasmparser::Parser;

/// Sections of core modules (WebAssembly core specification, 5.5.2).
const CUSTOM: u8 = 0;
const START: u8 = 8;
const CODE: u8 = 10;

/// Sections of components (component model, binary format).
const CORE_MODULE: u8 = 1;
const COMPONENT: u8 = 4;

/// Bytes before the first section.
const HEADER: usize = 8;

/// How deep components may be nested in each other. Each level is copied once more for the one
/// around it.
const MAX_DEPTH: u32 = 50;

/// A function without locals that traps: its length, no locals, `unreachable` and `end`.
const TRAP: [u8; 4] = [3, 0, 0x00, 0x0b];

/// Returns `bytes`, a valid component or module, without the code of its functions. No function
/// runs when it is instantiated. Returns `None` if its sections cannot be read, or are nested too deep.
pub(super) fn hollow(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut hollow = Vec::new();
    write(bytes, MAX_DEPTH, &mut hollow)?;
    Some(hollow)
}

/// Writes `bytes` without code. Components in it may be nested `depth` deep.
fn write(bytes: &[u8], depth: u32, output: &mut Vec<u8>) -> Option<()> {
    let is_module = Parser::is_core_wasm(bytes);
    let (header, mut rest) = bytes.split_at_checked(HEADER)?;
    output.extend(header);
    while let Some((&id, after)) = rest.split_first() {
        rest = after;
        let length = read_u32(&mut rest)?;
        let (section, after) = rest.split_at_checked(usize::try_from(length).ok()?)?;
        rest = after;
        match (is_module, id) {
            // Names of functions and hints about their code.
            (true, CUSTOM | START) => {}
            (true, CODE) => {
                let mut section = section;
                let count = read_u32(&mut section)?;
                // Each function takes a byte at least, so that the count is no larger than the file.
                if usize::try_from(count).ok()? > section.len() {
                    return None;
                }
                let mut code = Vec::new();
                write_u32(count, &mut code);
                (0..count).for_each(|_| code.extend(TRAP));
                write_section(id, &code, output)?;
            }
            (false, CORE_MODULE | COMPONENT) => {
                let mut nested = Vec::new();
                write(section, depth.checked_sub(1)?, &mut nested)?;
                write_section(id, &nested, output)?;
            }
            _ => write_section(id, section, output)?,
        }
    }
    Some(())
}

fn write_section(id: u8, content: &[u8], output: &mut Vec<u8>) -> Option<()> {
    output.push(id);
    write_u32(u32::try_from(content.len()).ok()?, output);
    output.extend(content);
    Some(())
}

/// Reads a number in LEB128 from the beginning of `bytes`, which begins behind it then.
fn read_u32(bytes: &mut &[u8]) -> Option<u32> {
    let mut number = 0;
    for shift in (0..32).step_by(7) {
        let (byte, after) = bytes.split_first()?;
        *bytes = after;
        number |= u32::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Writes a number in LEB128.
fn write_u32(mut number: u32, output: &mut Vec<u8>) {
    while number >= 0x80 {
        output.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    output.push(number.to_le_bytes()[0]);
}

#[cfg(test)]
mod tests {
    use super::super::content::ECHO;
    use super::super::extent::code_size;
    use super::super::outline::Outline;
    use super::super::proposals;
    use super::*;

    #[test]
    fn only_code_is_left_out() {
        let text = "(component
            (core module $m
                (memory (export \"memory\") 3)
                (global $g (mut i32) (i32.const 7))
                (func $start i32.const 1 global.set $g)
                (start $start)
                (func (export \"f\") (param i64) (result i32) global.get $g)
                (data (i32.const 0) \"data\"))
            (component $nested (core module (func (result i32) i32.const 300)))
            (core instance $i (instantiate $m))
            (func (export \"f\") (param \"x\" s64) (result u32) (canon lift (core func $i \"f\"))))";
        for component in [&wat::parse_str(text).unwrap(), ECHO] {
            let hollow = hollow(component).unwrap();
            proposals::validate(&hollow).unwrap();
            let names = |bytes| {
                let Outline { imports, exports, .. } = Outline::of(bytes);
                (imports, exports)
            };
            assert_eq!(names(&hollow), names(component));
            assert!(code_size(&hollow) < code_size(component));
        }
    }

    #[test]
    fn what_is_cut_off_or_nested_too_deep_is_refused() {
        for length in [0, 7, 9, ECHO.len() / 2, ECHO.len() - 1] {
            assert_eq!(hollow(&ECHO[..length]), None, "{length}");
        }
        let nested = |depth| {
            let text = format!("{}{}", "(component ".repeat(depth), ")".repeat(depth));
            hollow(&wat::parse_str(text).unwrap())
        };
        assert!(nested(51).is_some());
        assert_eq!(nested(52), None);
    }

    #[test]
    fn numbers_are_written_as_they_are_read() {
        for number in [0, 127, 128, 16_384, u32::MAX] {
            let mut bytes = Vec::new();
            write_u32(number, &mut bytes);
            let mut rest = bytes.as_slice();
            assert_eq!(read_u32(&mut rest), Some(number));
            assert!(rest.is_empty());
        }
        assert_eq!(read_u32(&mut &[0x80_u8; 9][..]), None);
    }
}
