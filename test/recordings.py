# Copyright 2026 vlm_reuse_node maintainers
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""The same pictures in every container that robots and their tools write."""

import base64
import json
import shutil
import sqlite3
from pathlib import Path

import cv2
import zstandard
from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter
from replay_bags import IMAGE, TYPES, message_of, storage_file, write_bag
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.rosbag2 import StoragePlugin
from rosbags.rosbag2 import Writer as Ros2Writer
from rosbags.rosbag2.enums import CompressionFormat, CompressionMode
from rosbags.typesys import Stores, get_typestore

ROS1_TYPES = get_typestore(Stores.ROS1_NOETIC)
TOPIC = '/camera/image_raw'


def directory(folder, pictures, storage=StoragePlugin.MCAP):
    return write_bag(folder / 'bag', {TOPIC: pictures}, storage=storage)


def without_metadata(folder, pictures, storage=StoragePlugin.MCAP):
    path = directory(folder, pictures, storage)
    (path / 'metadata.yaml').unlink()
    return path


def single_file(folder, pictures, storage=StoragePlugin.MCAP):
    file = storage_file(directory(folder / 'in', pictures, storage))
    return Path(shutil.copy(file, folder / f'bag{file.suffix}'))


def packed_file(folder, pictures, storage=StoragePlugin.MCAP):
    file = single_file(folder, pictures, storage)
    packed = file.with_name(f'{file.name}.zstd')
    packed.write_bytes(zstandard.compress(file.read_bytes()))
    return packed


def compressed(folder, pictures, mode, storage=StoragePlugin.SQLITE3, has_metadata=True):
    """A bag that its recorder compressed: whole files, or single messages."""
    path = folder / 'bag'
    writer = Ros2Writer(path, version=9, storage_plugin=storage)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        connection = writer.add_connection(TOPIC, IMAGE, typestore=TYPES)
        for frame in pictures:
            writer.write(connection, frame.stamp_ns, cdr(frame))
    if not has_metadata:
        (path / 'metadata.yaml').unlink()
    return path


def compressed_files(folder, pictures, **options):
    return compressed(folder, pictures, CompressionMode.FILE, **options)


def compressed_messages(folder, pictures, **options):
    return compressed(folder, pictures, CompressionMode.MESSAGE, **options)


def split(folder, pictures, has_metadata=False):
    """A bag of several files, as `ros2 bag record --max-bag-duration` writes it; names sort wrongly as texts."""
    path = folder / 'bag'
    path.mkdir()
    for number, frame in zip(range(9, 9 + len(pictures)), pictures):
        file = storage_file(write_bag(folder / f'part{number}', {TOPIC: [frame]}))
        shutil.copy(file, path / f'bag_{number}.mcap')
    return path


def killed_sqlite(folder, pictures):
    """A db3 whose last messages are still in the -wal beside it."""
    writing = single_file(folder / 'in', pictures[:1], StoragePlugin.SQLITE3)
    connection = sqlite3.connect(writing)
    connection.execute('PRAGMA journal_mode=WAL')
    connection.execute('PRAGMA wal_autocheckpoint=0')
    for frame in pictures[1:]:
        connection.execute(
            'INSERT INTO messages(topic_id, timestamp, data) VALUES(1, ?, ?)', (frame.stamp_ns, cdr(frame))
        )
    connection.commit()
    path = folder / 'bag'
    path.mkdir()
    for file in (writing, Path(f'{writing}-wal')):  # copied while it is open, as a killed recorder leaves it
        shutil.copy(file, path / file.name)
    connection.close()
    return path


def ros1_bag(folder, pictures):
    path = folder / 'bag.bag'
    with Ros1Writer(path) as writer:
        connection = writer.add_connection(TOPIC, IMAGE, typestore=ROS1_TYPES)
        for frame in pictures:
            writer.write(connection, frame.stamp_ns, ros1(frame))
    return path


def mcap(
    folder, pictures, serialize, *, profile='', encoding='cdr', kind=IMAGE, schema=('', b''), recorded_ns=(), **options
):
    """An mcap file that another tool than rosbag2 wrote. recorded_ns: when each picture was recorded."""
    path = folder / 'bag.mcap'
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('wb') as stream:
        writer = McapWriter(stream, chunk_size=20_000, compression=CompressionType.LZ4, **options)
        writer.start(profile=profile)
        schema_id = writer.register_schema(kind, *schema)
        channel = writer.register_channel(TOPIC, encoding, schema_id)
        for frame, time_ns in zip(pictures, recorded_ns or [frame.stamp_ns for frame in pictures], strict=True):
            writer.add_message(channel, time_ns, serialize(frame), time_ns)
        writer.finish()
    return path


def mcap_without_profile(folder, pictures):
    return mcap(folder, pictures, cdr)


def mcap_without_index(folder, pictures):
    return mcap(folder, pictures, cdr, use_chunking=False)


def old_type_names(folder, pictures):
    return mcap(folder, pictures, cdr, profile='ros2', kind='sensor_msgs/Image')


def ros1_mcap(folder, pictures):
    return mcap(
        folder, pictures, ros1, profile='ros1', encoding='ros1', kind='sensor_msgs/Image', schema=('ros1msg', b'')
    )


def cdr(frame):
    return bytes(TYPES.serialize_cdr(message_of(frame, IMAGE, True), IMAGE))


def ros1(frame):
    types = ROS1_TYPES.types
    seconds, nanoseconds = divmod(frame.stamp_ns, 1_000_000_000)
    stamp = types['builtin_interfaces/msg/Time'](sec=seconds, nanosec=nanoseconds)
    header = types['std_msgs/msg/Header'](seq=1, stamp=stamp, frame_id=frame.frame_id)
    height, width = frame.size
    picture = types[IMAGE](header, height, width, 'rgb8', 0, 3 * width, frame.rgb.reshape(-1))
    return bytes(ROS1_TYPES.serialize_ros1(picture, IMAGE))


def foxglove_json(folder, pictures, is_compressed=False):
    def serialize(frame):
        seconds, nanoseconds = divmod(frame.stamp_ns, 1_000_000_000)
        message = {'timestamp': {'sec': seconds, 'nsec': nanoseconds}, 'frame_id': frame.frame_id, **fields(frame)}
        return json.dumps({**message, 'data': base64.b64encode(message['data']).decode()}).encode()

    fields = png_fields if is_compressed else raw_fields
    kind = 'foxglove.CompressedImage' if is_compressed else 'foxglove.RawImage'
    return mcap(folder, pictures, serialize, encoding='json', kind=kind, schema=('jsonschema', b'{}'))


def foxglove_protobuf(folder, pictures, is_compressed=False):
    from google.protobuf import timestamp_pb2
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field
    from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message_factory import GetMessageClass

    name = 'CompressedImage' if is_compressed else 'RawImage'
    kinds = {'frame_id': Field.TYPE_STRING, 'encoding': Field.TYPE_STRING, 'format': Field.TYPE_STRING}
    numbers = (
        {'timestamp': 1, 'data': 2, 'format': 3, 'frame_id': 4}
        if is_compressed
        else {'timestamp': 1, 'width': 2, 'height': 3, 'encoding': 4, 'step': 5, 'data': 6, 'frame_id': 7}
    )
    file = FileDescriptorProto(name=f'foxglove/{name}.proto', package='foxglove', syntax='proto3')
    file.dependency.append('google/protobuf/timestamp.proto')
    message_type = file.message_type.add(name=name)
    for field, number in numbers.items():
        if field == 'timestamp':
            message_type.field.add(
                name=field, number=number, type=Field.TYPE_MESSAGE, type_name='.google.protobuf.Timestamp', label=1
            )
        else:
            kind = Field.TYPE_BYTES if field == 'data' else kinds.get(field, Field.TYPE_FIXED32)
            message_type.field.add(name=field, number=number, type=kind, label=1)
    time_file = FileDescriptorProto.FromString(timestamp_pb2.DESCRIPTOR.serialized_pb)
    pool = DescriptorPool()
    pool.Add(time_file)
    pool.Add(file)
    message = GetMessageClass(pool.FindMessageTypeByName(f'foxglove.{name}'))

    def serialize(frame):
        fields = png_fields(frame) if is_compressed else raw_fields(frame)
        picture = message(frame_id=frame.frame_id, **fields)
        picture.timestamp.seconds, picture.timestamp.nanos = divmod(frame.stamp_ns, 1_000_000_000)
        return picture.SerializeToString()

    schema = FileDescriptorSet(file=[time_file, file]).SerializeToString()
    return mcap(folder, pictures, serialize, encoding='protobuf', kind=f'foxglove.{name}', schema=('protobuf', schema))


def raw_fields(frame):
    height, width = frame.size
    return {'width': width, 'height': height, 'encoding': 'rgb8', 'step': 3 * width, 'data': frame.rgb.tobytes()}


def png_fields(frame):
    return {'format': 'png', 'data': cv2.imencode('.png', frame.rgb[..., ::-1])[1].tobytes()}
