;; Grows its table by a thousand elements until it is refused, when a connection is opened, and says how many times it was
;; not. By the sessions contract; compilers of other languages have no words for a table.
(module
  (import "[export]inet:service/sessions@0.1.0" "[resource-new]session" (func $new (param i32) (result i32)))
  (table $table 0 funcref)
  (memory (export "memory") 1)
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) i32.const 1024)
  (func (export "inet:service/sessions@0.1.0#[constructor]session")
    (param $peer i32) (result i32)
    (call $new (i32.const 1)))
  ;; The answer: where the bytes are, how many, and that this is the end.
  (func (export "inet:service/sessions@0.1.0#[method]session.handle")
    (param $session i32) (param $event i32) (param i32 i32) (result i32)
    (local $count i32) (local $digit i32)
    (loop $again
      (if (i32.ne (table.grow $table (ref.null func) (i32.const 1000)) (i32.const -1))
        (then (local.set $count (i32.add (local.get $count) (i32.const 1))) (br $again))))
    (local.set $digit (i32.const 64))
    (loop $digits
      (local.set $digit (i32.sub (local.get $digit) (i32.const 1)))
      (i32.store8 (local.get $digit) (i32.add (i32.const 48) (i32.rem_u (local.get $count) (i32.const 10))))
      (local.set $count (i32.div_u (local.get $count) (i32.const 10)))
      (br_if $digits (local.get $count)))
    (i32.store (i32.const 128) (local.get $digit))
    (i32.store (i32.const 132) (i32.sub (i32.const 64) (local.get $digit)))
    (i32.store8 (i32.const 136) (i32.const 3))
    (i32.const 128)))
