//! Storage that does not take what is written: exit code 69.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use insta::assert_snapshot;

use crate::support::{Program, glueless, mask_run_ids, staging_name, texts};

use super::{
    assert_unchanged, both_windows, both_windows_elsewhere, changes, contents, failure,
    lab_after_a_good_run, run, with,
};

fn set_modes(folder: &Path, folders: u32, files: u32) {
    let mode = |path: &Path, mode: u32| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
    };
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            set_modes(&path, folders, files);
        } else {
            mode(&path, files);
        }
    }
    mode(folder, folders);
}

/// The program as a user for whom permissions hold, as they do not for root.
fn bound_by_permissions(folder: &Path) -> Program {
    if fs::metadata(folder).expect("a folder").uid() != 0 {
        return Program::glueless();
    }
    let binary = folder.join("glueless");
    fs::copy(glueless(), &binary).expect("a copy for the other user");
    Program::new(Path::new("/usr/bin/setpriv"))
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(binary)
}

#[test]
fn a_lake_without_write_permission_stays_as_it_is() {
    let lab = lab_after_a_good_run();
    let (folder, lake) = (lab.folder.path(), lab.folder.path().join("lake"));
    let before = contents(&lake);
    let program = bound_by_permissions(folder);
    set_modes(folder, 0o555, 0o555);
    let output = run(&lab, program.arguments_of(&both_windows(&lab)));
    set_modes(folder, 0o755, 0o755);
    assert_snapshot!(failure(&output), @"
    exit 69
    error: cannot write [folder]/lake/_glueless/customers/versions/kind=version/00000000000000000003-[run]-00-00.parquet: input or output failed: Generic LocalFileSystem error: Unable to open file [folder]/lake/_glueless/customers/versions/kind=version/00000000000000000003-[run]-00-00.parquet#1: Permission denied (os error 13)
    hint: check its permissions and free space
    ");
    assert_eq!(output.stdout, "");
    assert_unchanged(&before, &contents(&lake));
    assert_eq!(run(&lab, both_windows(&lab)).code, 0);
    assert_eq!(lab.table("lake/curated").len(), 4);
}

#[test]
fn a_lake_that_cannot_be_made_is_named() {
    let lab = lab_after_a_good_run();
    let (folder, lake) = (lab.folder.path(), lab.folder.path().join("lake"));
    let before = contents(&lake);
    let program = bound_by_permissions(folder);
    set_modes(folder, 0o555, 0o555);
    let output = run(&lab, program.arguments_of(&both_windows_elsewhere(&lab)));
    set_modes(folder, 0o755, 0o755);
    assert_snapshot!(failure(&output), @"
    exit 69
    error: cannot write [folder]/lake/_glueless/others/versions/kind=version/00000000000000000001-[run]-00-00.parquet: input or output failed: Generic LocalFileSystem error: Unable to create dir [folder]/lake/_glueless/others/versions/kind=version: Permission denied (os error 13)
    hint: check its permissions and free space
    ");
    assert_eq!(output.stdout, "");
    assert_unchanged(&before, &contents(&lake));
}

/// Runs in a mount namespace of its own, so that the small disk disappears with the last process. The
/// lake gets a little more room from run to run, so that each write fails in one of the runs.
const FILL_UP: &str = r#"
set -eu
lake="$1/lake"; glueless="$2"; pipeline="$1/pipeline"; first="$3"; second="$4"
mount -t tmpfs -o size=1m tmpfs "$lake"
published() { (cd "$lake" && find . -path ./_glueless -prune -o -type f -exec sha256sum {} + | sort); }
mv "$second" "$second.later"
"$glueless" run "$pipeline" --start-date 2019-12-12 --end-date 2019-12-13 > "$1/first" 2>&1
mv "$second.later" "$second"
before=$(published)
used=$(df -k --output=used "$lake" | tail -n 1)
for more in $(seq 0 4 400); do
    mount -o "remount,size=$((used + more))k" "$lake"
    code=0
    "$glueless" curate "$pipeline" --start-date 2019-12-12 --end-date 2019-12-14 \
        > "$1/stdout" 2> "$1/stderr" || code=$?
    same=changed
    if [ "$(published)" = "$before" ]; then same=unchanged; fi
    left=$(find "$lake/_glueless" -path '*staging*' -type f | wc -l)
    message=$(grep -E '^(error|hint):' "$1/stderr" | tr '\n' ' ' || true)
    echo "$more|$code|$same|$left|$(wc -c < "$1/stdout")|$message"
    if [ "$code" = 0 ]; then exit 0; fi
done
"#;

#[test]
fn a_full_disk_changes_nothing_wherever_it_is_met() {
    let works = |flags: &str| {
        let probe = "d=$(mktemp -d) && mount -t tmpfs -o size=1m tmpfs $d";
        let probe = Command::new("unshare").args([flags, "sh", "-c", probe]).output();
        probe.is_ok_and(|output| output.status.success())
    };
    let flags = ["-rm", "-m"].into_iter().find(|flags| works(flags)).expect(
        "this test mounts a small disk: it needs util-linux's `unshare` and either user \
         namespaces (sysctl kernel.unprivileged_userns_clone=1) or the right to mount",
    );
    let lab = lab_after_a_good_run();
    fs::remove_dir_all(lab.folder.path().join("lake")).expect("removed");
    fs::create_dir(lab.folder.path().join("lake")).expect("made");
    // Text that does not compress, so that the table's file needs room.
    let mut state = 1_u64;
    let notes = [0; 3].map(|_| {
        let letter = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(b'0' + (state >> 58) as u8)
        };
        (0..20_000).map(letter).collect::<String>()
    });
    let columns = with(changes(1, 1), "note", texts(notes));
    lab.put_columns("raw/20191213-120000000.parquet", columns);
    let path = |name: &str| lab.folder.path().join(name);
    let output = Command::new("unshare")
        .args([flags, "sh", "-c", FILL_UP, "fill_up"])
        .args([&path(""), &glueless()])
        .args(
            ["20191212-120000000", "20191213-120000000"].map(|n| path(&format!("raw/{n}.parquet"))),
        )
        .output()
        .expect("it starts");
    let printed = String::from_utf8_lossy(&output.stdout).replace(&lab.base, "[folder]");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}\n{printed}");
    let runs: Vec<Vec<&str>> = printed.lines().map(|line| line.split('|').collect()).collect();
    let (last, failed) = runs.split_last().expect("runs");
    assert_eq!(last[1..3], ["0", "changed"], "{printed}");
    assert!(failed.len() >= 10, "{printed}");
    for run in failed {
        assert_eq!(run[1..5], ["69", "unchanged", "0", "0"], "{run:?}\n{printed}");
        assert!(run[5].contains("the disk is full"), "{run:?}\n{printed}");
    }
    let of_table = failed.iter().find(|run| run[5].contains("/staging/")).expect("a failed write");
    // Two threads write, and either can be the first to find no room.
    let message = ["000001", "000002", "000003"]
        .iter()
        .fold(of_table[5].trim_end().to_string(), |message, number| {
            message.replace(&format!("curated/{number}-"), "curated/000000-")
        });
    let own = staging_name(&format!("{}/lake/_glueless/customers", lab.base));
    let message = message.replace(&own, "[own]");
    assert_snapshot!(mask_run_ids(&message), @"error: cannot write [folder]/lake/_glueless/customers/staging/[own]/00000000000000000003-[run]/curated/000000-00000.parquet: the disk is full: Generic LocalFileSystem error: Unable to copy data to file: No space left on device (os error 28) hint: free some space (spilled data goes to `limits.spill_dir`) and run again");
}
