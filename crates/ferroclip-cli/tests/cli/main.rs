//! The program from outside: what it prints, what it writes, how it ends.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod bad_input;
mod commands;
mod common;
