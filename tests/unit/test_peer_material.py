"""A material says what its memory belongs to."""

from dataclasses import replace

from tests.support.materials import make_material


def test_memory_of_gpus_is_named_and_host_memory_is_not() -> None:
    material = make_material()
    assert not material.accelerator
    on_device = tuple(replace(region, device=0) for region in material.regions)
    assert replace(material, regions=on_device).accelerator == "cuda"
    assert replace(material, regions=on_device, accelerator="h200").accelerator == "h200"
