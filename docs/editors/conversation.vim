" Vim syntax file
" Language: conversations of wasm-inetd (*.conversation)

if exists("b:current_syntax")
  finish
endif

" Vim prefers the item that is defined last.
syntax match conversationInvalid /^\s*\S.*$/
syntax match conversationComment /^\s*#.*$/
syntax match conversationText /^\s*[<>]\s*"\([^"\\]\|\\[nrt0\\"']\|\\x\x\x\)*"\s*$/ contains=conversationSide,conversationString
syntax match conversationClient /^\s*>\s*\(break\|end\|reset\|pause\s*\(\d\+\(ms\|s\|m\|h\)\s*\)\+\)\s*$/ contains=conversationSide
syntax match conversationGuest /^\s*<\s*\(end\|reset\|trap\|cpu-limit\|byte-limit\|start-failed\|grant-failed\)\s*$/ contains=conversationSide
syntax match conversationExit /^\s*<\s*exit\s*-\=0*[1-9]\d*\s*$/ contains=conversationSide
syntax match conversationCut /^\s*cut\s*$/
syntax match conversationSide /^\s*[<>]/ contained
syntax match conversationString /".*"/ contained contains=conversationEscape
syntax match conversationEscape /\\\([nrt0\\"']\|x\x\x\)/ contained

highlight default link conversationInvalid Error
highlight default link conversationComment Comment
highlight default link conversationClient Keyword
highlight default link conversationGuest Keyword
highlight default link conversationExit Keyword
highlight default link conversationCut Keyword
highlight default link conversationSide Operator
highlight default link conversationString String
highlight default link conversationEscape SpecialChar

let b:current_syntax = "conversation"
