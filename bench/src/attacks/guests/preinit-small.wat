;; A program whose initialisation at its load leaves nothing.
(module
  (memory (export "memory") 1)
  (func (export "_start"))
  (func (export "wizer-initialize")))
