//! Takes over an archive of another cluster: the header is made anew, and with it every checksum,
//! which depends on it. The content stays as it is stored.

use super::chunks::{CHUNK_FRAME_LEN, TRAILER_LEN};
use super::directory::TEMPORARY_SUFFIX;
use super::{
    FullSpeed, Health, Pace, SnapshotArchive, SnapshotError, SnapshotHeader, SnapshotInfo,
    SnapshotStore,
};
use crate::Membership;

impl SnapshotStore {
    /// Copies `source`, which may belong to another cluster and group, into this store as its own
    /// snapshot with these members. The whole source is verified. The copy is durable and listed
    /// when the call returns; an archive with the same last included entry is replaced.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`] with the place in the source, [`SnapshotError::NoSpace`],
    /// [`SnapshotError::Aborted`], or an I/O error. Nothing is left behind.
    pub fn repack(
        &self,
        source: &SnapshotArchive,
        membership: Membership,
        pace: &mut dyn Pace,
    ) -> Result<SnapshotInfo, SnapshotError> {
        let inner = &self.inner;
        let mut header = SnapshotHeader::clone(source.header());
        (header.cluster, header.group) = (inner.options.cluster, inner.options.group);
        header.facts.membership = membership;
        let last_included = header.facts.last_included;
        let path = inner.path_of(last_included);
        let encoded = header.encode(&path)?;
        let frames = header.chunks().saturating_mul(CHUNK_FRAME_LEN as u64);
        inner
            .check_space((encoded.len() + TRAILER_LEN) as u64 + header.content_bytes() + frames)?;
        let temporary = inner.dir.join(inner.name_of(last_included, TEMPORARY_SUFFIX));
        let copied = inner
            .writer(&temporary, &header, &encoded, pace)
            .and_then(|mut writer| {
                source.check(&mut FullSpeed, &mut |chunk| writer.put_stored(chunk.stored))?;
                writer.finish()
            })
            .and_then(|()| SnapshotArchive::open(&*inner.fs, &temporary))
            .and_then(|archive| inner.publish(&temporary, &path).map(|()| archive));
        match copied {
            Ok(archive) => Ok(inner.register(&archive, path, Health::Whole)),
            Err(error) => {
                // If it cannot be removed now, it is removed at the next start.
                inner.fs.remove_file(&temporary).ok();
                Err(error)
            }
        }
    }
}
