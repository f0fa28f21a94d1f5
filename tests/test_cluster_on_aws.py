"""cluster.yaml through Ray's own bootstrap and start of machines on AWS, against moto's AWS."""

import re
from types import SimpleNamespace

import boto3
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private.aws import config as aws
from ray.autoscaler._private.aws import utils as aws_utils
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config
from test_project import ROOT

REGION = "us-west-2"
IMAGE = "ami-REPLACE"
SSH = 22


@pytest.fixture
def account(tmp_path, monkeypatch):
    """An empty account, in which Ray does not wait for roles to spread."""
    monkeypatch.setenv("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setattr(aws, "time", SimpleNamespace(sleep=lambda seconds: None))
    # Ray keeps clients between calls.
    aws_utils.resource_cache.cache_clear()
    aws_utils.client_cache.cache_clear()
    with mock_aws():
        yield boto3.client("ec2", REGION)


def launched(account, text):
    """What is started from a cluster file: the machines by their kind, and the rules of their security group."""
    image = account.describe_images()["Images"][0]["ImageId"]
    config = prepare_config(yaml.safe_load(text.replace(IMAGE, image)))
    validate_config(config)
    config = aws.bootstrap_aws(config)
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for name, kind in config["available_node_types"].items():
        tags = {"ray-node-name": name, "ray-user-node-type": name, "ray-node-status": "new"}
        provider.create_node(dict(kind["node_config"]), tags, 1)
    machines = {}
    for reservation in account.describe_instances()["Reservations"]:
        for instance in reservation["Instances"]:
            tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
            machines[tags["ray-user-node-type"]] = instance
    groups = account.describe_security_groups(
        GroupIds=[group["GroupId"] for group in machines["head"]["SecurityGroups"]]
    )["SecurityGroups"]
    rules = [rule for group in groups for rule in group["IpPermissions"]]
    return config, machines, rules


def flaws(account, text):
    """What is wrong with the machines that a cluster file starts."""
    config, machines, rules = launched(account, text)
    found = []
    known = {kind["InstanceType"] for kind in account.describe_instance_types()["InstanceTypes"]}
    for name, machine in machines.items():
        if machine["InstanceType"] not in known:
            found.append(f"{name}: unknown instance type")  # `ray up` only logs it
        if machine["MetadataOptions"]["HttpTokens"] != "required":
            found.append(f"{name}: IMDSv1")
    if machines["head"].get("InstanceLifecycle") == "spot":
        found.append("a head that can be taken away")
    if machines["worker"].get("InstanceLifecycle") != "spot":
        found.append("workers at the full price")
    for rule in rules:
        # Machines of the cluster are allowed by their group, not by addresses.
        addresses = rule.get("IpRanges", []) + rule.get("Ipv6Ranges", [])
        if addresses and (rule.get("FromPort"), rule.get("ToPort")) != (SSH, SSH):
            found.append("the security group is open")
    worker = config["available_node_types"]["worker"]
    if worker["min_workers"]:
        found.append("machines that nobody waits for")
    return found


def cluster_file():
    return (ROOT / "cluster.yaml").read_text()


def test_the_cluster_file_starts_a_head_and_spot_workers_that_only_ssh_reaches(account):
    assert flaws(account, cluster_file()) == []


def replaced(before, after, count=1):
    def change(text):
        assert before in text
        return text.replace(before, after, count)

    return change


OPEN_PORT = """GroupName: raytrain
    IpPermissions: [{FromPort: 8265, ToPort: 8265, IpProtocol: tcp, IpRanges: [{CidrIp: 0.0.0.0/0}]}]"""
# By what is found then.
MUTATIONS = {
    "IMDSv1": replaced("{HttpTokens: required}", "{HttpTokens: optional}"),
    "workers at the full price": replaced("      InstanceMarketOptions: {MarketType: spot}\n", ""),
    "a head that can be taken away": replaced(
        "      InstanceType: m5.xlarge\n",
        "      InstanceType: m5.xlarge\n      InstanceMarketOptions: {MarketType: spot}\n",
    ),
    "the security group is open": replaced("GroupName: raytrain", OPEN_PORT),
    "unknown instance type": replaced("InstanceType: g5.4xlarge", "InstanceType: g5.5xlarge"),
    "machines that nobody waits for": replaced("min_workers: 0", "min_workers: 4"),
}


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutation_of_the_cluster_file_is_noticed(mutation, account):
    found = flaws(account, MUTATIONS[mutation](cluster_file()))
    assert any(mutation in flaw for flaw in found)


def test_a_misspelt_key_of_the_cluster_file_is_refused(account):
    text = re.sub(r"^max_workers:", "max_worker:", cluster_file(), flags=re.MULTILINE)
    with pytest.raises(Exception, match="max_worker"):
        launched(account, text)
