//! Archives whose chunks are compressed: they keep the same promises as the others.
#![allow(clippy::unwrap_used)]

mod snapshot_kit;

use std::path::Path;
use std::sync::Arc;

use d_engine_core::LogId;
use d_engine_storage::Fs;
use d_engine_storage::fs::sim::SimFs;
use d_engine_storage::snapshot::{
    Compression, FullSpeed, Health, Offer, SnapshotInfo, SnapshotOptions, SnapshotReport,
    SnapshotStore,
};
use snapshot_kit::{
    DIR, Files, OUT, facts, log_id, options, path_of, read_files, with_content, write_files,
};

fn open(fs: &SimFs) -> (SnapshotStore, SnapshotReport) {
    let options =
        SnapshotOptions { compression: Compression::Zstd, chunk_bytes: 4 << 10, ..options() };
    SnapshotStore::open(Arc::new(fs.clone()) as Arc<dyn Fs>, Path::new(DIR), options).unwrap()
}

/// Chunks that get shorter, one that does not, and a file that ends in the middle of one.
fn files() -> Files {
    let text = b"a record much like the one before it; ".repeat(300);
    let mut state = 7_u32;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    [
        ("empty".to_owned(), Vec::new()),
        ("noise".to_owned(), noise.take(9_000).collect()),
        ("text".to_owned(), text),
    ]
    .into()
}

fn take(fs: &SimFs, store: &SnapshotStore, last_included: LogId) -> SnapshotInfo {
    let (staging, files) = (store.staging().unwrap(), files());
    write_files(fs, staging.path(), &files).unwrap();
    store.pack(staging, &facts(last_included, &files), &mut FullSpeed).unwrap()
}

#[test]
fn what_was_compressed_comes_back_and_is_shorter() {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    let info = take(&fs, &store, log_id(1, 5));
    let content: usize = files().values().map(Vec::len).sum();
    assert!(info.len < content as u64 - 8_000, "{} of {content} bytes", info.len);
    assert_eq!(info.header.compression, Compression::Zstd);
    store.unpack(log_id(1, 5), Path::new(OUT), &mut FullSpeed).unwrap();
    assert_eq!(read_files(&fs, Path::new(OUT)), files());
    // A store that does not compress reads the archive too.
    let plain = SnapshotStore::open(Arc::new(fs.clone()), Path::new(DIR), options()).unwrap().0;
    assert_eq!(plain.verify(log_id(1, 5), &mut FullSpeed).unwrap().health, Health::Whole);
}

#[test]
fn every_flipped_bit_and_every_cut_is_found() {
    let fs = SimFs::new();
    let (store, _) = open(&fs);
    let last_included = log_id(1, 5);
    let len = take(&fs, &store, last_included).len;
    let image = fs.image();
    for offset in 0..len {
        let fs = SimFs::from_image(&image);
        assert!(fs.flip_bit(&path_of(last_included), offset, (offset % 8) as u8));
        let (store, _) = open(&fs);
        assert!(store.find_whole(&mut FullSpeed).unwrap().0.is_none(), "a flip at {offset}");
        let unpacked = store.unpack(last_included, Path::new(OUT), &mut FullSpeed);
        assert!(unpacked.is_err() && fs.kind(Path::new(OUT)).is_err(), "a flip at {offset}");
    }
    let whole = image.files[&path_of(last_included)].clone();
    for len in (0..whole.len()).step_by(11) {
        let (store, report) =
            open(&with_content(&fs, &path_of(last_included), whole[..len].to_vec()));
        assert!(store.list().is_empty() && report.unusable.len() == 1, "{len} bytes");
    }
}

#[test]
fn receiving_goes_on_where_it_was_cut() {
    let (source, last_included) = (SimFs::new(), log_id(2, 9));
    let (store, _) = open(&source);
    take(&source, &store, last_included);
    let archive = store.open_archive(last_included).unwrap();
    for cut in (0..archive.len()).step_by(997) {
        let fs = SimFs::new();
        let (store, _) = open(&fs);
        for end in [cut, archive.len()] {
            let mut receiver =
                store.receive(Offer::from(&archive), u64::MAX, &mut FullSpeed).unwrap();
            assert!(
                end == cut || receiver.received() + 5_000 > cut,
                "{} of {cut}",
                receiver.received()
            );
            while receiver.received() < end {
                let piece = archive.read_at(receiver.received(), 300).unwrap();
                receiver.write(piece.offset, &piece.bytes, piece.crc).unwrap();
            }
            if end == archive.len() {
                assert_eq!(receiver.finish(&mut FullSpeed).unwrap().sha256, archive.sha256());
            }
        }
        store.unpack(last_included, Path::new(OUT), &mut FullSpeed).unwrap();
        assert_eq!(read_files(&fs, Path::new(OUT)), files());
    }
}
