//! The program from outside: what it prints, what it writes, how it ends.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test panics, and prints figures")]

mod bad_input;
mod checkpoints;
mod commands;
mod common;
#[cfg(feature = "hub")]
mod fetch;
#[cfg(target_os = "linux")]
mod full_disk;
#[cfg(feature = "hub")]
mod hub;
mod told;
#[cfg(target_os = "linux")]
#[path = "../training/mod.rs"]
mod training;
mod zero_shot;
