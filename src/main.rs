//! The program's entry: parses the command line, calls the library, exits.

use std::process::ExitCode;

use clap::Parser;
use glueless::cli::args::Arguments;
use glueless::cli::program::Program;
use glueless::engine::workarounds::OUT_OF_MEMORY_PANIC;
use glueless::parquet_io::open::is_decoding;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // That of a decoder becomes an error, which is told; one of the engine is tried again.
        let starved = panic.payload_as_str() == Some(OUT_OF_MEMORY_PANIC);
        if !is_decoding() && !starved {
            told(panic);
        }
    }));
    let program = Program::start(&arguments.logging);
    ExitCode::from(program.execute(&arguments.command))
}
