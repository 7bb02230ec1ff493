;; A composition of a part that writes a list of 1,000 sets of 26 flags to another part. The
;; allocator of the reader, which is called while the host has all of them, never returns.
(component
  (import "wasi:clocks/monotonic-clock@0.3.0"
    (instance $c (export "wait-for" (func async (param "how-long" u64)))))
  (component $reader
    (type $flags (flags "a" "b" "c" "d" "e" "f" "g" "h" "i" "j" "k" "l" "m"
                          "n" "o" "p" "q" "r" "s" "t" "u" "v" "w" "x" "y" "z"))
    (export $f "flags" (type $flags))
    (type $list (list $f)) (type $s (stream $list))
    (core module $libc (memory (export "mem") 1)
      (func (export "realloc") (param i32 i32 i32 i32) (result i32) (loop $l (br $l)) unreachable))
    (core instance $libc (instantiate $libc))
    (core func $return (canon task.return))
    (core func $set (canon waitable-set.new))
    (core func $join (canon waitable.join))
    (core func $read (canon stream.read $s async
      (memory (core memory $libc "mem")) (realloc (core func $libc "realloc"))))
    (core module $m
      (import "" "return" (func $return))
      (import "" "set" (func $set (result i32)))
      (import "" "join" (func $join (param i32 i32)))
      (import "" "read" (func $read (param i32 i32 i32) (result i32)))
      (func (export "go") (param $s i32) (result i32) (local $set i32)
        (local.set $set (call $set))
        (drop (call $read (local.get $s) (i32.const 16) (i32.const 1)))
        (call $join (local.get $s) (local.get $set))
        (call $return)
        ;; Waits for the read.
        (i32.or (i32.const 2) (i32.shl (local.get $set) (i32.const 4))))
      (func (export "continue") (param i32 i32 i32) (result i32) unreachable))
    (core instance $i (instantiate $m (with "" (instance
      (export "return" (func $return)) (export "set" (func $set))
      (export "join" (func $join)) (export "read" (func $read))))))
    (func (export "go") async (param "s" $s)
      (canon lift (core func $i "go") async (callback (core func $i "continue")))))
  (component $writer
    (import "clock" (instance $c (export "wait-for" (func async (param "how-long" u64)))))
    (type $flags (flags "a" "b" "c" "d" "e" "f" "g" "h" "i" "j" "k" "l" "m"
                          "n" "o" "p" "q" "r" "s" "t" "u" "v" "w" "x" "y" "z"))
    (import "flags" (type $f (eq $flags)))
    (type $list (list $f)) (type $s (stream $list))
    (import "go" (func $go async (param "s" $s)))
    (core module $libc (memory (export "mem") 2))
    (core instance $libc (instantiate $libc))
    (core func $wait (canon lower (func $c "wait-for")))
    (core func $go (canon lower (func $go) async))
    (core func $new (canon stream.new $s))
    (core func $write (canon stream.write $s async (memory (core memory $libc "mem"))))
    (core module $m
      (import "" "mem" (memory 2))
      (import "" "wait" (func $wait (param i64)))
      (import "" "go" (func $go (param i32) (result i32)))
      (import "" "new" (func $new (result i64)))
      (import "" "write" (func $write (param i32 i32 i32) (result i32)))
      (global $sets i32 (i32.const 1000))
      (func (export "run") (result i32) (local $ends i64)
        (memory.fill (i32.const 4096) (i32.const 255) (i32.mul (global.get $sets) (i32.const 4)))
        (i32.store (i32.const 16) (i32.const 4096))
        (i32.store (i32.const 20) (global.get $sets))
        (local.set $ends (call $new))
        (drop (call $go (i32.wrap_i64 (local.get $ends))))
        (drop (call $write (i32.wrap_i64 (i64.shr_u (local.get $ends) (i64.const 32)))
          (i32.const 16) (i32.const 1)))
        (call $wait (i64.const 1000000000000000))
        (i32.const 0)))
    (core instance $i (instantiate $m (with "" (instance
      (export "mem" (memory $libc "mem")) (export "wait" (func $wait))
      (export "go" (func $go)) (export "new" (func $new)) (export "write" (func $write))))))
    (func (export "run") async (result (result)) (canon lift (core func $i "run"))))
  (instance $reader (instantiate $reader))
  (alias export $reader "flags" (type $f))
  (instance $writer (instantiate $writer
    (with "clock" (instance $c)) (with "flags" (type $f)) (with "go" (func $reader "go"))))
  (instance $run (export "run" (func $writer "run")))
  (export "wasi:cli/run@0.3.0" (instance $run)))
