//! The program's entry: parses the command line, calls the library, exits.

use std::process::ExitCode;

use clap::Parser;
use glueless::cli::args::Arguments;
use glueless::cli::program::{Program, hide_expected_panics};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    hide_expected_panics();
    let program = Program::start(&arguments.logging);
    ExitCode::from(program.execute(&arguments.command))
}
