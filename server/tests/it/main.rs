//! The program as a process: what it prints, how it exits, what it leaves behind.

mod config;
mod demo;
mod node;
mod support;
