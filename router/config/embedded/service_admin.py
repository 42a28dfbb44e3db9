"""The admin services: instances, databases, schema changes, and the operations these answer with, always done."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from google.longrunning import operations_pb2  # type: ignore[import-untyped]
from google.protobuf import empty_pb2

from router.config.embedded import ddl, limits, schema_text
from router.config.embedded.errors import CODES, StoreError, not_found, precondition
from router.config.embedded.messages import Admin, InstanceAdmin, raw, timestamp
from router.config.embedded.timestamps import US_PER_S

if TYPE_CHECKING:
    from router.config.embedded.limits import Settings
    from router.config.embedded.registry import OpenDatabase, Registry

_Instance = raw(InstanceAdmin.Instance)
_Config = raw(InstanceAdmin.InstanceConfig)
_Configs = raw(InstanceAdmin.ListInstanceConfigsResponse)
_Instances = raw(InstanceAdmin.ListInstancesResponse)
_CreateInstance = raw(InstanceAdmin.CreateInstanceMetadata)
_Database = raw(Admin.Database)
_Databases = raw(Admin.ListDatabasesResponse)
_Ddl = raw(Admin.GetDatabaseDdlResponse)
_CreateDatabase = raw(Admin.CreateDatabaseMetadata)
_UpdateDdl = raw(Admin.UpdateDatabaseDdlMetadata)
_READY = 2
_GOOGLE_SQL = 1

INSTANCE_REQUESTS = {
    "ListInstanceConfigs": raw(InstanceAdmin.ListInstanceConfigsRequest),
    "GetInstanceConfig": raw(InstanceAdmin.GetInstanceConfigRequest),
    "ListInstances": raw(InstanceAdmin.ListInstancesRequest),
    "GetInstance": raw(InstanceAdmin.GetInstanceRequest),
    "CreateInstance": raw(InstanceAdmin.CreateInstanceRequest),
    "DeleteInstance": raw(InstanceAdmin.DeleteInstanceRequest),
}
DATABASE_REQUESTS = {
    "ListDatabases": raw(Admin.ListDatabasesRequest),
    "CreateDatabase": raw(Admin.CreateDatabaseRequest),
    "GetDatabase": raw(Admin.GetDatabaseRequest),
    "UpdateDatabaseDdl": raw(Admin.UpdateDatabaseDdlRequest),
    "DropDatabase": raw(Admin.DropDatabaseRequest),
    "GetDatabaseDdl": raw(Admin.GetDatabaseDdlRequest),
}
OPERATION_REQUESTS = {
    "GetOperation": operations_pb2.GetOperationRequest,
    "WaitOperation": operations_pb2.WaitOperationRequest,
    "ListOperations": operations_pb2.ListOperationsRequest,
    "DeleteOperation": operations_pb2.DeleteOperationRequest,
    "CancelOperation": operations_pb2.CancelOperationRequest,
}


class AdminService:
    """See the module. Every method may raise StoreError."""

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self._registry = registry
        self._settings = settings
        self._operations: OrderedDict[str, Any] = OrderedDict()
        self._count = 0

    def _done(self, name: str, metadata: Any, response: Any = None, error: StoreError | None = None) -> Any:
        operation = operations_pb2.Operation(name=name, done=True)
        operation.metadata.Pack(metadata)
        if error is not None:
            operation.error.code = CODES[error.code]
            operation.error.message = error.text
        else:
            operation.response.Pack(response)
        self._operations[name] = operation
        if len(self._operations) > limits.MAX_OPERATIONS:
            self._operations.popitem(last=False)
        return operation

    def _operation_name(self, parent: str, wanted: str) -> str:
        self._count += 1
        name = f"{parent}/operations/{wanted or f'_auto_{self._count}'}"
        if wanted and name in self._operations:
            raise StoreError("ALREADY_EXISTS", f"Operation already exists: {name}")
        return name

    # -- instances

    async def ListInstanceConfigs(self, request: Any) -> Any:  # noqa: N802 -- RPC names, here and below
        """Return the one configuration there is."""
        return _Configs(instance_configs=[_config(f"{request.parent}/instanceConfigs/embedded-config")])

    async def GetInstanceConfig(self, request: Any) -> Any:  # noqa: N802
        """Return any configuration that is asked for: they are all this one."""
        return _config(request.name)

    async def ListInstances(self, request: Any) -> Any:  # noqa: N802
        """Return all instances on one page."""
        return _Instances(
            instances=[_Instance.FromString(data) for data in self._registry.instances(request.parent)]
        )

    async def GetInstance(self, request: Any) -> Any:  # noqa: N802
        """Return an instance."""
        return _Instance.FromString(self._registry.instance(request.name))

    async def CreateInstance(self, request: Any) -> Any:  # noqa: N802
        """Make an instance."""
        name = f"{request.parent}/instances/{request.instance_id}"
        instance = _Instance()
        instance.CopyFrom(request.instance)
        instance.name, instance.state = name, _READY
        self._registry.add_instance(name, instance.SerializeToString())
        return self._done(self._operation_name(name, ""), _CreateInstance(instance=instance), instance)

    async def DeleteInstance(self, request: Any) -> Any:  # noqa: N802
        """Delete an instance and its databases."""
        self._registry.drop_instance(request.name)
        return empty_pb2.Empty()

    # -- databases

    async def ListDatabases(self, request: Any) -> Any:  # noqa: N802
        """Return all databases of an instance on one page."""
        self._registry.instance(request.parent)
        return _Databases(databases=[self._message(served) for served in self._registry.databases(request.parent)])

    async def CreateDatabase(self, request: Any) -> Any:  # noqa: N802
        """Make a database with its first schema, or nothing at all."""
        if request.database_dialect not in {0, _GOOGLE_SQL}:
            raise StoreError("UNIMPLEMENTED", "only the GoogleSQL dialect is supported by the embedded store")
        name = f"{request.parent}/databases/{ddl.parse_create_database(request.create_statement)}"
        served = self._registry.create(name)
        try:
            served.database.apply_ddl(list(request.extra_statements))
        except BaseException:
            self._registry.drop(name)
            raise
        return self._done(self._operation_name(name, ""), _CreateDatabase(database=name), self._message(served))

    async def GetDatabase(self, request: Any) -> Any:  # noqa: N802
        """Return a database."""
        return self._message(self._registry.database(request.name))

    async def DropDatabase(self, request: Any) -> Any:  # noqa: N802
        """Delete a database."""
        self._registry.drop(request.database)
        return empty_pb2.Empty()

    async def UpdateDatabaseDdl(self, request: Any) -> Any:  # noqa: N802
        """Apply statements in order; those before one that fails stay.

        A statement that cannot be parsed fails the call, one that cannot be applied fails the operation.
        """
        database = self._registry.database(request.database).database
        if not request.statements:
            raise precondition("UpdateDatabaseDdl requires at least one statement")
        for statement in request.statements:
            ddl.parse(statement)
        name = self._operation_name(request.database, request.operation_id)
        metadata = _UpdateDdl(database=request.database, statements=request.statements)
        for statement in request.statements:
            try:
                (at,) = database.apply_ddl([statement])
            except StoreError as error:
                if not metadata.commit_timestamps:
                    raise
                return self._done(name, metadata, error=error)
            metadata.commit_timestamps.append(timestamp(at))
        return self._done(name, metadata, empty_pb2.Empty())

    async def GetDatabaseDdl(self, request: Any) -> Any:  # noqa: N802
        """Return statements that make the schema of today."""
        database = self._registry.database(request.database).database
        return _Ddl(statements=schema_text.statements(database.catalog))

    def _message(self, served: OpenDatabase) -> Any:
        database = served.database
        seconds = int(self._settings.version_retention_s)
        retention = f"{seconds // 3600}h" if seconds % 3600 == 0 and seconds else f"{seconds}s"
        message = _Database(
            name=served.name, state=_READY, database_dialect=_GOOGLE_SQL, version_retention_period=retention
        )
        message.create_time.CopyFrom(timestamp(database.created_at))
        earliest = max(database.created_at, database.safe() - seconds * US_PER_S)
        message.earliest_version_time.CopyFrom(timestamp(earliest))
        return message

    # -- operations

    async def GetOperation(self, request: Any) -> Any:  # noqa: N802
        """Return an operation, which is done."""
        operation = self._operations.get(request.name)
        if operation is None:
            raise not_found(f"Operation not found: {request.name[:256]}")
        return operation

    async def WaitOperation(self, request: Any) -> Any:  # noqa: N802
        """Return an operation, which is done."""
        return await self.GetOperation(request)

    async def ListOperations(self, request: Any) -> Any:  # noqa: N802
        """Return the operations below a name."""
        found = [op for name, op in self._operations.items() if name.startswith(f"{request.name}/")]
        return operations_pb2.ListOperationsResponse(operations=found)

    async def DeleteOperation(self, request: Any) -> Any:  # noqa: N802
        """Forget an operation."""
        self._operations.pop(request.name, None)
        return empty_pb2.Empty()

    async def CancelOperation(self, request: Any) -> Any:  # noqa: N802
        """Do nothing: operations are done when they are answered."""
        await self.GetOperation(request)
        return empty_pb2.Empty()


def _config(name: str) -> Any:
    return _Config(name=name, display_name="Embedded store")
